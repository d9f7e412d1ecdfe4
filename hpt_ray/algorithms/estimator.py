"""The unified policy gradient estimator (arXiv 2509.04419, Eq 6), for every algorithm.

Per token the coefficient of ∇log π_θ is c = m · Â · s · π_θ/π_ref, detached, and a policy term is
−Σ c · log π_θ / Z. Both stand here, once; algorithms only choose the parts.

The work is in two halves. `weigh` runs where the rewards of the whole optimizer step are known and
gives advantages and scales per row. `loss` runs on one micro-batch of rows with its log-probs; the
sum of the losses of all micro-batches on all ranks is the loss of the step. It knows no batch
sizes, no gate and no other rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.algorithms.base import Part, Stream, Term
from hpt_ray.algorithms.batch import (
    Array,
    BatchShape,
    RowView,
    RowWeights,
    Settings,
    TokenRows,
    TokenView,
    at_least_float32,
    to_numpy,
    token_view,
)
from hpt_ray.algorithms.corrections import CORRECTIONS
from hpt_ray.algorithms.denominators import DENOMINATORS
from hpt_ray.algorithms.kl import KL_ESTIMATORS
from hpt_ray.algorithms.normalizers import NORMALIZERS
from hpt_ray.algorithms.shapings import SHAPINGS
from hpt_ray.algorithms.stats import Stats, masked, token_stats
from hpt_ray.algorithms.token_parts import MASKS


@dataclass(frozen=True, slots=True)
class Estimator:
    """An algorithm with every choice made: names and numbers only, so it can be pickled.

    Make one with `make_estimator`. `terms` have their coefficients ρ and λ multiplied in.
    """

    name: str
    mode: str
    offline_branch: str
    gate: str
    terms: tuple[Term, ...]
    settings: Settings
    entropy_coef: float = 0.0
    entropy_normalizer: str | None = None
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_in: str = "loss"
    correction: str = "none"
    demonstration_in_group: bool = False

    # ---- what the rest of the system must provide -------------------------------------------------

    @property
    def needs_rollouts(self) -> bool:
        return self.gate != "demonstrations"

    @property
    def needs_demonstrations(self) -> bool:
        return self.gate != "rollouts"

    @property
    def needs_all_rows(self) -> bool:
        """No backward pass may start before all rows of the optimizer step are known."""
        return any("all_rows" in part.needs for part in self._parts())

    @property
    def needs_values(self) -> bool:
        return any("values" in part.needs for part in self._parts())

    @property
    def needs_entropy(self) -> bool:
        return self.entropy_coef != 0 or any("entropy" in part.needs for part in self._parts())

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef != 0

    @property
    def corrects_staleness(self) -> bool:
        """Every term on rollouts is weighed by how likely its policy made them, or none is on rollouts."""
        denominators = {term.denominator for term in self.terms if term.rows == "rollouts"}
        return self.correction != "none" or denominators <= {"old", "sequence"}

    @property
    def compares_with_demonstration(self) -> bool:
        """An advantage is measured in the group of a question's rollouts and its demonstration."""
        return self.demonstration_in_group or any("union" in part.needs for part in self._parts())

    def num_rollouts(self, rollouts_per_question: int) -> int:
        """How many responses to sample per question: one fewer where the demonstration joins the group."""
        return rollouts_per_question - 1 if self.demonstration_in_group else rollouts_per_question

    def _parts(self) -> list[Part]:
        parts = [part for term in self.terms for part in parts_of(term).values()]
        if self.entropy_coef and self.entropy_normalizer:
            parts.append(NORMALIZERS[self.entropy_normalizer])
        return parts

    # ---- the driver's half ------------------------------------------------------------------------

    def weigh(
        self,
        row_lengths: Array | Tensor,
        group_ids: Array | Tensor,
        rewards: Array | Tensor,
        is_demo: Array | Tensor,
        weights: Array | Tensor,
        batch: BatchShape,
        *,
        prompt_lengths: Array | Tensor | None = None,
        values: Array | Tensor | None = None,
        token_rewards: Array | Tensor | None = None,
    ) -> RowWeights:
        """Advantages and scales of rows, as float64 numpy.

        All rows of a group must be given together; all rows of the optimizer step, if
        `needs_all_rows`. `weights` [rows] are the gate's α (rollouts) or β (demonstrations); a row of
        weight 0 does not count in any Z. `values` and `token_rewards` [R] are for PPO (see `gae`);
        `prompt_lengths` [rows] is for the official mode's virtual packing (None: no prompts).
        ValueError: a row without tokens, or no `values` where a term needs them.
        """
        lengths = to_numpy(row_lengths).astype(np.int64)
        if (lengths < 1).any():
            raise ValueError(f"row {int(np.argmax(lengths < 1))} has no response token")
        view = RowView(
            lengths=lengths,
            groups=np.unique(to_numpy(group_ids), return_inverse=True)[1].astype(np.int64),
            rewards=to_numpy(rewards).astype(np.float64),
            is_demo=to_numpy(is_demo).astype(bool),
            weights=to_numpy(weights).astype(np.float64),
            prompt_lengths=np.zeros_like(lengths) if prompt_lengths is None else to_numpy(prompt_lengths),
            batch=batch,
            settings=self.settings,
            values=None if values is None else to_numpy(values).astype(np.float64),
            token_rewards=None if token_rewards is None else to_numpy(token_rewards).astype(np.float64),
        )
        num_columns = int(lengths.sum()) if self.needs_values else len(lengths)
        advantages = np.zeros((len(self.terms), num_columns))
        scales = np.zeros((len(self.terms), len(lengths)))
        for k, term in enumerate(self.terms):
            members = view.members(term.rows)
            advantage = ADVANTAGES[term.advantage].function(view)
            if len(advantage) != num_columns:
                advantage = advantage[view.row_of_token]
            inside = members[view.row_of_token] if self.needs_values else members
            advantages[k] = np.where(inside, advantage, 0.0)
            scales[k] = term.coef * self._scale(view, members, term.normalizer)
        return RowWeights(advantages, scales, self._entropy_scales(view), self._kl_scales(view))

    @staticmethod
    def _scale(view: RowView, members: Array, normalizer: str) -> Array:
        """[rows] gate weight / Z on the members, 0 elsewhere."""
        return np.where(members, view.weights * NORMALIZERS[normalizer].function(view, members), 0.0)

    def _stream_scale(self, view: RowView, stream: Stream) -> Array:
        """[rows] gate weight / Z with the normalizer of the stream's first term; 0 if it has none."""
        normalizer = next((term.normalizer for term in self.terms if term.rows == stream), None)
        if normalizer is None:
            return np.zeros(len(view.lengths))
        return self._scale(view, view.members(stream), normalizer)

    def _entropy_scales(self, view: RowView) -> Array:
        if self.entropy_coef == 0:
            return np.zeros(len(view.lengths))
        if self.entropy_normalizer:
            everyone = np.ones(len(view.lengths), dtype=bool)
            return self.entropy_coef * self._scale(view, everyone, self.entropy_normalizer)
        per_stream = self._stream_scale(view, "rollouts") + self._stream_scale(view, "demonstrations")
        return self.entropy_coef * per_stream

    def _kl_scales(self, view: RowView) -> Array:
        if self.kl_coef == 0 or self.kl_in == "reward":
            return np.zeros(len(view.lengths))
        return self.kl_coef * self._stream_scale(view, "rollouts")

    # ---- the learner's half -----------------------------------------------------------------------

    def loss(
        self, rows: TokenRows, weights: RowWeights | None = None, batch: BatchShape | None = None
    ) -> tuple[Tensor, Stats]:
        """Scalar with gradient, and statistics that add up over micro-batches (see `stats`).

        Without `weights` the rows are taken as a whole optimizer step with gate weights of 1.
        """
        view = token_view(rows, self.settings)
        weights = self._weigh_rows(rows, batch) if weights is None else weights
        coefficients, stats = self._coefficients(view, weights)
        scales = _per_token(weights.scales, view)
        logp = at_least_float32(rows.logp_now)
        total = -((coefficients * scales).sum(0) * logp).sum()
        if self.entropy_coef:
            entropy = at_least_float32(_given(rows.entropy, "entropy", "an entropy bonus"))
            total = total - (_per_token(weights.entropy_scales, view) * entropy).sum()
        if self.kl_coef and self.kl_in == "loss":
            logp_ref = _given(rows.logp_ref, "logp_ref", "a KL loss").to(logp)
            # logp_ref may be NaN on demonstrations, where the scale is 0; such a NaN must not reach a sum.
            kl = KL_ESTIMATORS[self.kl_estimator](logp - torch.where(view.is_demo, view.logp, logp_ref))
            total = total + (_per_token(weights.kl_scales, view) * kl).sum()
            stats["policy/kl_ref"] = masked(kl.detach(), ~view.is_demo)
        return total, stats

    def coefficients(self, rows: TokenRows, weights: RowWeights | None = None) -> Tensor:
        """[R] c = Σ_k coef_k · m · Â · s · π_θ/π_ref, detached: neither Z nor gate weights are in it.

        Where a row has one term (all algorithms but SRFT and HPT's `mix`), the policy loss is
        −Σ c · log π_θ / Z. `term_coefficients` gives the terms one by one.
        """
        per_term = self.term_coefficients(rows, weights)
        return (per_term * per_term.new_tensor([term.coef for term in self.terms])[:, None]).sum(0)

    def term_coefficients(self, rows: TokenRows, weights: RowWeights | None = None) -> Tensor:
        """[K, R] m · Â · s · π_θ/π_ref of each term, detached; 0 where a term does not apply."""
        weights = self._weigh_rows(rows, None) if weights is None else weights
        return self._coefficients(token_view(rows, self.settings), weights)[0]

    def _coefficients(self, view: TokenView, weights: RowWeights) -> tuple[Tensor, Stats]:
        advantages = _per_token(weights.advantages, view)
        coefficients, stats = torch.zeros_like(advantages), token_stats(view)
        for k, term in enumerate(self.terms):
            inside = view.is_demo if term.rows == "demonstrations" else ~view.is_demo
            log_ratio = DENOMINATORS[term.denominator].function(view)
            log_mask = MASKS[term.mask].function(log_ratio, advantages[k], self.settings)
            log_shape = SHAPINGS[term.shaping].function(view)
            if term.rows == "rollouts":
                log_ratio = CORRECTIONS[self.correction].function(log_ratio, view)
            # In logs, so that no factor overflows alone; −inf is a dropped token.
            c = advantages[k] * torch.exp(log_mask + log_shape + log_ratio)
            coefficients[k] = torch.where(inside, c, torch.zeros_like(c))
            if term.mask != "none":
                stats["policy/clip_share"] = masked((log_mask != 0).to(c), inside)
            if self.correction != "none" and term.rows == "rollouts":
                by_sequence = "sequence" in CORRECTIONS[self.correction].needs
                raw = view.row_sum(view.log_ratio_old) if by_sequence else view.log_ratio_old
                stats["policy/correction_share"] = masked((log_ratio != raw).to(c), inside)
        return coefficients, stats

    def _weigh_rows(self, rows: TokenRows, batch: BatchShape | None) -> RowWeights:
        return self.weigh(
            rows.row_lengths,
            rows.group_ids,
            rows.rewards,
            rows.is_demo,
            np.ones(len(rows.row_lengths)),
            batch or rows.batch_shape(),
            prompt_lengths=rows.prompt_lengths,
            values=rows.values,
        )


def parts_of(term: Term) -> dict[str, Part]:
    """The five parts a term names, by family."""
    return {
        "advantage": ADVANTAGES[term.advantage],
        "denominator": DENOMINATORS[term.denominator],
        "mask": MASKS[term.mask],
        "shaping": SHAPINGS[term.shaping],
        "normalizer": NORMALIZERS[term.normalizer],
    }


def _per_token(values: Array | Tensor, view: TokenView) -> Tensor:
    """[…, rows] → […, R] on the device of the log-probs; [K, R] stays as it is."""
    tensor = torch.as_tensor(values, dtype=view.logp.dtype, device=view.logp.device)
    if tensor.shape[-1] == len(view.logp):
        return tensor
    return tensor[..., view.row_of_token]


def _given(tensor: Tensor | None, name: str, what: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{what} needs TokenRows.{name}")
    return tensor
