"""The unified policy gradient estimator (arXiv 2509.04419, Eq 6), for every algorithm.

Per token the coefficient of ∇log π_θ is c = m · Â · s · π_θ/π_ref, detached: the stabilisation mask m, the advantage
Â, the factor s of the likelihood term and the reference policy π_ref. A policy term is −Σ c · log π_θ / Z. Both
stand here, once; algorithms only choose the parts.

The work is in two halves. `weigh` runs where the rewards of the whole optimizer step are known and
gives advantages and scales per sample. `loss` runs on one micro-batch of samples with its logprobs; the
sum of the losses of all micro-batches on all ranks is the loss of the step. It knows no batch
sizes, no gate and no other rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.algorithms.base import Part, Prefixes, Stream, Term
from hpt_ray.algorithms.batch import (
    Array,
    BatchShape,
    SampleView,
    SampleWeights,
    Settings,
    Stats,
    TokenBatch,
    TokenView,
    at_least_float32,
    masked,
    on_device,
    sample_view,
    token_stats,
    token_view,
)
from hpt_ray.algorithms.gates import GATES
from hpt_ray.algorithms.loss_aggregation import LOSS_AGGREGATIONS
from hpt_ray.algorithms.outside import Table
from hpt_ray.algorithms.prefixes import PREFIX_RULES, falling
from hpt_ray.algorithms.rehearsal import REHEARSAL
from hpt_ray.algorithms.token_parts import CLIPS, CORRECTIONS, DENOMINATORS, KL_ESTIMATORS, SHAPINGS

FAMILIES: dict[str, Table[Part]] = {  # by the field of a term that names the part
    "advantage": ADVANTAGES,
    "denominator": DENOMINATORS,
    "clip": CLIPS,
    "shaping": SHAPINGS,
    "loss_aggregation": LOSS_AGGREGATIONS,
}


@dataclass(frozen=True, slots=True)
class Estimator:
    """An algorithm with every choice made: names and numbers only, so it can be pickled.

    Make one with `make_estimator`. `terms` have their coefficients ρ and λ multiplied in; μ comes on top.
    """

    name: str
    mode: str
    offline_branch: str
    gate: str
    terms: tuple[Term, ...]
    settings: Settings
    entropy_coef: float = 0.0
    entropy_aggregation: str | None = None
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_in: str = "loss"
    correction: str = "none"
    demonstration_in_group: bool = False
    prefixes: Prefixes | None = None
    mu: tuple[float, float, float] | None = None  # first, last, number of steps
    step: int = 0  # done, of the phase; only μ depends on it

    def at(self, step: int) -> Estimator:
        """The same after `step` steps."""
        return self if self.mu is None else replace(self, step=step)

    @property
    def mu_now(self) -> float | None:
        """μ falls from its first to its last value on half a cosine; None: the streams are not mixed by μ."""
        return None if self.mu is None else falling(self.mu, self.step)

    def coef(self, term: Term) -> float:
        """What multiplies a term: ρ or λ of its own, times 1 − μ or μ where there is one. Rehearsal is not mixed."""
        if self.mu_now is None or term.stream == "rehearsal":
            return term.coef
        return term.coef * (self.mu_now if term.stream == "demonstrations" else 1 - self.mu_now)

    def rehearsing(self) -> Estimator:
        """The same with the term on rehearsal."""
        return replace(self, terms=(*self.terms, REHEARSAL))

    # ---- what the rest of the system must provide -------------------------------------------------

    @property
    def needs_rollouts(self) -> bool:
        return GATES[self.gate].needs_rollouts

    @property
    def needs_demonstrations(self) -> bool:
        return GATES[self.gate].needs_demonstrations

    @property
    def needs_all_samples(self) -> bool:
        """No backward pass may start before all samples of the optimizer step are known."""
        return any("all_samples" in part.needs for part in self._parts())

    @property
    def needs_values(self) -> bool:
        return any("values" in part.needs for part in self._parts())

    @property
    def needs_teacher(self) -> bool:
        """Rollouts must be scored by the frozen policy before they are weighed: it gives their advantages."""
        return any("teacher" in part.needs for part in self._parts())

    @property
    def advantages_per_token(self) -> bool:
        return self.needs_values or self.needs_teacher

    @property
    def needs_reference(self) -> bool:
        by_part = any("reference" in part.needs for part in self._parts())
        return self.kl_coef != 0 or self.needs_teacher or by_part

    @property
    def corrects_off_policy(self) -> bool:
        """Every term on rollouts is weighed by how likely its policy made them, or none is on rollouts."""
        denominators = {term.denominator for term in self.terms if term.stream == "rollouts"}
        return self.correction != "none" or denominators <= {"old", "sequence"}

    @property
    def compares_rollouts(self) -> bool:
        """Every advantage of a rollout is measured by the others of its prompt: of one alone it is 0."""
        rollouts = [term for term in self.terms if term.stream == "rollouts"]
        return bool(rollouts) and all("group" in ADVANTAGES[term.advantage].needs for term in rollouts)

    @property
    def compares_with_demonstration(self) -> bool:
        """An advantage is measured in the group of a prompt's rollouts and its demonstration."""
        return self.demonstration_in_group or any("union" in part.needs for part in self._parts())

    @property
    def trains_prefixes(self) -> bool:
        """What rollouts continue is a sample too."""
        return self.prefixes is not None and any(term.stream == "demonstrations" for term in self.terms)

    @property
    def searches_prefixes(self) -> bool:
        """A prompt may be drawn several times in a step."""
        return self.prefixes is not None and PREFIX_RULES[self.prefixes.rule].share is None

    def num_rollouts(self, group_size: int) -> int:
        """How many responses to sample per prompt: one fewer where the demonstration joins the group."""
        return group_size - 1 if self.demonstration_in_group else group_size

    def _parts(self) -> list[Part]:
        parts = [part for term in self.terms for part in parts_of(term).values()]
        if self.entropy_coef and self.entropy_aggregation:
            parts.append(LOSS_AGGREGATIONS[self.entropy_aggregation])
        return parts

    # ---- the driver's half ------------------------------------------------------------------------

    def weigh(
        self,
        sample_lengths: Array | Tensor,
        group_ids: Array | Tensor,
        rewards: Array | Tensor,
        is_demo: Array | Tensor,
        weights: Array | Tensor,
        batch: BatchShape,
        *,
        is_rehearsal: Array | Tensor | None = None,
        prompt_lengths: Array | Tensor | None = None,
        values: Array | Tensor | None = None,
        token_rewards: Array | Tensor | None = None,
        teacher_gaps: Array | Tensor | None = None,
    ) -> SampleWeights:
        """Advantages and scales of samples, as float64 numpy.

        All samples of a group must be given together; all samples of the optimizer step, if
        `needs_all_samples`. `weights` [samples] are the gate's α (rollouts) or β (demonstrations); a sample of
        weight 0 does not count in any Z. `values` and `token_rewards` [R] are for PPO (see `gae`), `teacher_gaps` [R]
        for distillation (see `SampleView`); `prompt_lengths` [samples] is for the official mode's virtual packing
        (None: no prompts).
        ValueError: a sample without tokens, or no `values` where a term needs them.
        """
        view = sample_view(
            sample_lengths,
            group_ids,
            rewards,
            is_demo,
            weights,
            batch,
            self.settings,
            is_rehearsal=is_rehearsal,
            prompt_lengths=prompt_lengths,
            values=values,
            token_rewards=token_rewards,
            teacher_gaps=teacher_gaps,
        )
        lengths = view.lengths
        num_columns = int(lengths.sum()) if self.advantages_per_token else len(lengths)
        advantages = np.zeros((len(self.terms), num_columns))
        scales = np.zeros((len(self.terms), len(lengths)))
        for k, term in enumerate(self.terms):
            members = view.members(term.stream)
            advantage = ADVANTAGES[term.advantage].function(view)
            if len(advantage) != num_columns:
                advantage = advantage[view.sample_of_token]
            inside = members[view.sample_of_token] if self.advantages_per_token else members
            advantages[k] = np.where(inside, advantage, 0.0)
            scales[k] = self.coef(term) * self._scale(view, members, term.loss_aggregation)
        return SampleWeights(advantages, scales, self._entropy_scales(view), self._kl_scales(view))

    @staticmethod
    def _scale(view: SampleView, members: Array, loss_aggregation: str) -> Array:
        """[samples] gate weight / Z on the members, 0 elsewhere."""
        return np.where(
            members, view.weights * LOSS_AGGREGATIONS[loss_aggregation].function(view, members), 0.0
        )

    def _stream_scale(self, view: SampleView, stream: Stream) -> Array:
        """[samples] gate weight / Z as the stream's first term aggregates; 0 if it has none."""
        loss_aggregation = next((term.loss_aggregation for term in self.terms if term.stream == stream), None)
        if loss_aggregation is None:
            return np.zeros(len(view.lengths))
        return self._scale(view, view.members(stream), loss_aggregation)

    def _entropy_scales(self, view: SampleView) -> Array:
        if self.entropy_coef == 0:
            return np.zeros(len(view.lengths))
        if self.entropy_aggregation:
            return self.entropy_coef * self._scale(view, ~view.is_rehearsal, self.entropy_aggregation)
        per_stream = self._stream_scale(view, "rollouts") + self._stream_scale(view, "demonstrations")
        return self.entropy_coef * per_stream

    def _kl_scales(self, view: SampleView) -> Array:
        if self.kl_coef == 0 or self.kl_in == "reward":
            return np.zeros(len(view.lengths))
        return self.kl_coef * self._stream_scale(view, "rollouts")

    # ---- the learner's half -----------------------------------------------------------------------

    def loss(
        self, samples: TokenBatch, weights: SampleWeights | None = None, batch: BatchShape | None = None
    ) -> tuple[Tensor, Stats]:
        """Scalar with gradient, and statistics that add up over micro-batches (see `stats`).

        Without `weights` the samples are taken as a whole optimizer step with gate weights of 1.
        """
        view = token_view(samples, self.settings)
        weights = self._weight_samples(samples, batch) if weights is None else weights
        coefficients, stats = self._coefficients(view, weights)
        scales = _per_token(weights.scales, view)
        logprobs = at_least_float32(samples.logprobs)
        total = -((coefficients * scales).sum(0) * logprobs).sum()
        if self.entropy_coef:
            entropy = at_least_float32(_given(samples.entropy, "entropy", "an entropy bonus"))
            total = total - (_per_token(weights.entropy_scales, view) * entropy).sum()
        if self.kl_coef and self.kl_in == "loss":
            ref_logprobs = _given(samples.ref_logprobs, "ref_logprobs", "a KL loss").to(logprobs)
            # ref_logprobs may be NaN on demonstrations, where the scale is 0; such a NaN must not reach a sum.
            kl = KL_ESTIMATORS[self.kl_estimator](
                logprobs - torch.where(view.is_demo, view.logprobs, ref_logprobs)
            )
            total = total + (_per_token(weights.kl_scales, view) * kl).sum()
            stats["policy/kl_ref"] = masked(kl.detach(), ~view.is_demo)
        return total, stats

    def coefficients(self, samples: TokenBatch, weights: SampleWeights | None = None) -> Tensor:
        """[R] c = Σ_k coef_k · m · Â · s · π_θ/π_ref, detached: neither Z nor gate weights are in it.

        Where a sample has one term (all algorithms but SRFT and HPT's `mix`), the policy loss is
        −Σ c · log π_θ / Z. `term_coefficients` gives the terms one by one.
        """
        per_term = self.term_coefficients(samples, weights)
        return (per_term * per_term.new_tensor([self.coef(term) for term in self.terms])[:, None]).sum(0)

    def term_coefficients(self, samples: TokenBatch, weights: SampleWeights | None = None) -> Tensor:
        """[K, R] m · Â · s · π_θ/π_ref of each term, detached; 0 where a term does not apply."""
        weights = self._weight_samples(samples, None) if weights is None else weights
        return self._coefficients(token_view(samples, self.settings), weights)[0]

    def _coefficients(self, view: TokenView, weights: SampleWeights) -> tuple[Tensor, Stats]:
        advantages = _per_token(weights.advantages, view)
        coefficients, stats = torch.zeros_like(advantages), token_stats(view)
        for k, term in enumerate(self.terms):
            inside = view.members(term.stream)
            log_ratio = DENOMINATORS[term.denominator].function(view)
            log_mask = CLIPS[term.clip].function(log_ratio, advantages[k], self.settings)
            log_shape = SHAPINGS[term.shaping].function(view)
            if term.stream == "rollouts":
                log_ratio = CORRECTIONS[self.correction].function(log_ratio, view)
            # In logs, so that no factor overflows alone; −inf is a dropped token.
            c = advantages[k] * torch.exp(log_mask + log_shape + log_ratio)
            coefficients[k] = torch.where(inside, c, torch.zeros_like(c))
            if term.clip != "none":
                stats["policy/clip_share"] = masked((log_mask != 0).to(c), inside)
            if self.correction != "none" and term.stream == "rollouts":
                by_sequence = "sequence" in CORRECTIONS[self.correction].needs
                raw = view.sample_sum(view.log_ratio_old) if by_sequence else view.log_ratio_old
                stats["policy/correction_share"] = masked((log_ratio != raw).to(c), inside)
        return coefficients, stats

    def _weight_samples(self, samples: TokenBatch, batch: BatchShape | None) -> SampleWeights:
        gaps = None
        if self.needs_teacher:
            reference = _given(samples.ref_logprobs, "ref_logprobs", "a teacher")
            gaps = torch.where(
                torch.as_tensor(samples.is_demo).repeat_interleave(torch.as_tensor(samples.sample_lengths)),
                0.0,
                reference.detach() - samples.old_logprobs.detach(),
            )
        return self.weigh(
            samples.sample_lengths,
            samples.group_ids,
            samples.rewards,
            samples.is_demo,
            np.ones(len(samples.sample_lengths)),
            batch or samples.batch_shape(),
            is_rehearsal=samples.is_rehearsal,
            prompt_lengths=samples.prompt_lengths,
            values=samples.values,
            teacher_gaps=gaps,
        )


def parts_of(term: Term) -> dict[str, Part]:
    """The five parts a term names, by family."""
    return {family: table[getattr(term, family)] for family, table in FAMILIES.items()}


def _per_token(values: Array | Tensor, view: TokenView) -> Tensor:
    """[…, samples] → […, R] on the device of the logprobs; [K, R] stays as it is."""
    tensor = on_device(values, view.logprobs.device, view.logprobs.dtype)
    if tensor.shape[-1] == len(view.logprobs):
        return tensor
    return tensor[..., view.sample_of_token]


def _given(tensor: Tensor | None, name: str, what: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{what} needs TokenBatch.{name}")
    return tensor
