"""Each algorithm against the loss of its paper, written here by hand, in float64 on a small network.

For every sample: the gradient of the estimator's loss equals that of the classical loss, and equals
Σ c · ∇log π / Z with `coefficients`. The classical losses share nothing with the package but the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hpt_ray.algorithms import ALGORITHMS, BatchShape, TokenBatch, gae, make_estimator

TOLERANCE = 1e-10
VOCABULARY, HIDDEN, C = 7, 5, 24.0


@dataclass
class Case:
    """Three prompts with four rollouts each and one demonstration each; samples as index ranges."""

    samples: TokenBatch
    parameters: list[Tensor]
    batch: BatchShape

    def spans(self, demo: bool) -> list[tuple[int, slice]]:
        ends = self.samples.sample_lengths.cumsum(0)
        return [
            (i, slice(int(end - length), int(end)))
            for i, (end, length) in enumerate(zip(ends, self.samples.sample_lengths, strict=True))
            if bool(self.samples.is_demo[i]) == demo
        ]

    def gradient(self, loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss, self.parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in grads])


def policy(parameters: list[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of a tiny recurrent-free network: the next token given the last one."""
    embedding, weight, head = parameters
    before = torch.cat([tokens.new_zeros(1), tokens[:-1]])
    logprob = torch.log_softmax(torch.tanh(embedding[before] @ weight) @ head, dim=-1)
    return logprob.gather(1, tokens[:, None])[:, 0], -(logprob.exp() * logprob).sum(1)


def make_case(
    rollouts: bool = True, demonstrations: bool = True, drift: float = 0.15, prefixes: bool = False
) -> Case:
    random = torch.Generator().manual_seed(5)
    shapes = ((VOCABULARY, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, VOCABULARY))
    new = [torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes]
    old = [p.detach() + drift * torch.randn(p.shape, generator=random, dtype=torch.float64) for p in new]
    rewards = {0: (1, 0, 0, 1), 1: (0, 1, 0, 0), 2: (1, 1, 1, 1)}
    lengths, groups, scores, demo = [], [], [], []
    for prompt, group in rewards.items():
        for reward in group if rollouts else ():
            lengths.append(int(torch.randint(1, 9, (1,), generator=random)))
            groups.append(prompt), scores.append(float(reward)), demo.append(False)
        if demonstrations:
            lengths.append(int(torch.randint(1, 9, (1,), generator=random)))
            # a prefix has the reward of the rollout that continues it
            groups.append(prompt), scores.append(scores[-1] if prefixes else 1.0), demo.append(True)
    tokens = torch.randint(0, VOCABULARY, (sum(lengths),), generator=random)
    logprob, entropy = policy(new, tokens)
    old_logprobs, _ = policy(old, tokens)
    frozen = [p.detach() + 0.5 * torch.randn(p.shape, generator=random, dtype=torch.float64) for p in new]
    ref_logprobs, _ = policy(frozen, tokens)
    is_demo = torch.tensor(demo)
    old_logprobs[is_demo.repeat_interleave(torch.tensor(lengths))] = math.nan
    values = torch.randn(len(tokens), generator=random, dtype=torch.float64)
    samples = TokenBatch(
        logprobs=logprob,
        old_logprobs=old_logprobs,
        sample_lengths=torch.tensor(lengths),
        group_ids=torch.tensor(groups),
        rewards=torch.tensor(scores, dtype=torch.float64),
        is_demo=is_demo,
        entropy=entropy,
        values=values,
        ref_logprobs=ref_logprobs,
    )
    return Case(samples, new, BatchShape(num_prompts=3, num_rollouts=4, max_response_tokens=int(C)))


# ---- classical losses ----------------------------------------------------------------------------


def group_rewards(case: Case, i: int, union: bool) -> Tensor:
    same = case.samples.group_ids == case.samples.group_ids[i]
    return case.samples.rewards[same if union else same & ~case.samples.is_demo]


def centred(case: Case, i: int, *, std: bool, union: bool = False) -> Tensor:
    rewards = group_rewards(case, i, union)
    advantage = case.samples.rewards[i] - rewards.mean()
    return advantage / (rewards.std() + 1e-6) if std else advantage


def ppo_clip(ratio: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    return torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def over_rollouts(case: Case, objective: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """−Σ_i objective(i, log π, ρ) over rollout samples."""
    total = torch.zeros((), dtype=torch.float64)
    for i, span in case.spans(demo=False):
        logprob = case.samples.logprobs[span]
        total = total - objective(i, logprob, (logprob - case.samples.old_logprobs[span]).exp())
    return total


def over_demos(case: Case, objective: Callable[[int, Tensor], Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, span in case.spans(demo=True):
        total = total - objective(i, case.samples.logprobs[span])
    return total


def sft(case: Case) -> Tensor:
    return over_demos(case, lambda i, logprob: logprob.mean()) / 3


def sft_paper(case: Case) -> Tensor:
    return over_demos(case, lambda i, logprob: logprob.sum()) / 3


def reinforce(case: Case) -> Tensor:
    signs = {0.0: -1.0, 1.0: 1.0}
    return (
        over_rollouts(case, lambda i, logprob, ratio: signs[float(case.samples.rewards[i])] * logprob.sum())
        / 12
    )


def rloo(case: Case) -> Tensor:
    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        rewards = group_rewards(case, i, union=False)
        others = (rewards.sum() - case.samples.rewards[i]) / (len(rewards) - 1)
        return (case.samples.rewards[i] - others) * logprob.sum()

    return over_rollouts(case, objective) / 12


def ppo(case: Case) -> Tensor:
    spans = dict(case.spans(demo=False))

    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        values, length = case.samples.values[spans[i]], len(logprob)
        following = torch.cat([values[1:], values.new_zeros(1)])
        rewards = torch.zeros(length, dtype=torch.float64)
        rewards[-1] = case.samples.rewards[i]
        delta = rewards + following - values
        advantage = torch.stack(
            [sum(0.95 ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
        )
        return ppo_clip(ratio, advantage).mean()

    return over_rollouts(case, objective) / 12


def grpo(case: Case) -> Tensor:
    return (
        over_rollouts(case, lambda i, logprob, ratio: ppo_clip(ratio, centred(case, i, std=True)).mean()) / 12
    )


def dr_grpo(case: Case) -> Tensor:
    return (
        over_rollouts(case, lambda i, logprob, ratio: ppo_clip(ratio, centred(case, i, std=False)).sum() / C)
        / 12
    )


def dapo(case: Case) -> Tensor:
    mixed = {
        i: span.stop - span.start
        for i, span in case.spans(demo=False)
        if 0 < group_rewards(case, i, union=False).sum() < 4
    }

    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        return (
            ppo_clip(ratio, centred(case, i, std=True), 0.2, 0.28).sum() if i in mixed else logprob.sum() * 0
        )

    return over_rollouts(case, objective) / sum(mixed.values())


def cispo(case: Case) -> Tensor:
    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        return (ratio.detach().clamp(max=1.2) * centred(case, i, std=True) * logprob).sum()

    tokens = sum(span.stop - span.start for _, span in case.spans(demo=False))
    return over_rollouts(case, objective) / tokens


def gspo(case: Case) -> Tensor:
    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        s = ratio.log().mean().exp()
        return ppo_clip(s, centred(case, i, std=True), 3e-4, 4e-4)

    return over_rollouts(case, objective) / 12


def luffy_parts(case: Case, std: bool, clip: bool, z: Callable[[int], float]) -> Tensor:
    def on(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        advantage = centred(case, i, std=std, union=True)
        return (ppo_clip(ratio, advantage) if clip else ratio * advantage).sum() / z(i)

    def off(i: int, logprob: Tensor) -> Tensor:
        p = logprob.exp()
        return (p / (p + 0.1) * centred(case, i, std=std, union=True)).sum() / z(i)

    return over_rollouts(case, on) + over_demos(case, off)


def luffy(case: Case) -> Tensor:
    return luffy_parts(case, std=False, clip=False, z=lambda i: 3 * 5 * C)


def luffy_paper(case: Case) -> Tensor:
    def tokens_of_group(i: int) -> float:
        return 3 * float(
            case.samples.sample_lengths[case.samples.group_ids == case.samples.group_ids[i]].sum()
        )

    return luffy_parts(case, std=True, clip=True, z=tokens_of_group)


def luffy_official(case: Case) -> Tensor:
    return luffy_parts(case, std=False, clip=False, z=lambda i: 8 * C) + official_entropy(case)


def srft_rollouts(case: Case, z: Callable[[Tensor], float]) -> Tensor:
    spans = dict(case.spans(demo=False))

    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        weight = (
            0.1 * case.samples.entropy[spans[i]].detach().mean().exp()
            if case.samples.rewards[i] == 1
            else -1.0
        )
        return weight * logprob.sum() / z(logprob)

    return over_rollouts(case, objective)


def srft(case: Case) -> Tensor:
    spans = dict(case.spans(demo=True))

    def off(i: int, logprob: Tensor) -> Tensor:
        weight = 0.5 * (-case.samples.entropy[spans[i]].detach().mean()).exp()
        return (weight * logprob + centred(case, i, std=True, union=True) * logprob.exp()).mean() / 3

    return srft_rollouts(case, z=lambda logprob: 12 * len(logprob)) + over_demos(case, off)


def srft_official(case: Case) -> Tensor:
    spans = dict(case.spans(demo=True))
    total = srft_rollouts(case, z=lambda logprob: 8 * C) + official_entropy(case)
    for batch in official_micro_batches(case):
        demos = [i for i in batch if case.samples.is_demo[i]]
        tokens = sum(int(case.samples.sample_lengths[i]) for i in demos)
        for i in demos:
            logprob = case.samples.logprobs[spans[i]]
            weight = 0.5 * (-case.samples.entropy[spans[i]].detach().mean()).exp()
            p = logprob.exp()
            total = total - (weight * logprob).sum() / tokens / 8
            total = total - (p / (p + 0.1) * centred(case, i, std=False, union=True)).sum() / C / 8
    return total


def official_micro_batches(case: Case) -> list[list[int]]:
    """The released code's layout for these few short samples: two samples to a rank, one micro-batch each.

    Longest first, to the rank with the fewest tokens that has room; all micro-batches are far below
    32,768 tokens.
    """
    lengths = case.samples.sample_lengths.tolist()
    ranks: list[list[int]] = [[] for _ in range(8)]
    room = math.ceil(len(lengths) / 8)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        free = [rank for rank in ranks if len(rank) < room]
        min(free, key=lambda rank: sum(lengths[j] for j in rank)).append(i)
    return [rank for rank in ranks if rank]


def official_entropy(case: Case) -> Tensor:
    spans = dict(case.spans(demo=True)) | dict(case.spans(demo=False))
    total = torch.zeros((), dtype=torch.float64)
    for batch in official_micro_batches(case):
        total = total - 0.001 * torch.cat([case.samples.entropy[spans[i]] for i in batch]).mean() / 8
    return total


def official_sft(case: Case, coef: float = 1.0) -> Tensor:
    spans = dict(case.spans(demo=True))
    total = torch.zeros((), dtype=torch.float64)
    for batch in official_micro_batches(case):
        if demos := [case.samples.logprobs[spans[i]] for i in batch if case.samples.is_demo[i]]:
            total = total - coef * torch.cat(demos).mean() / 8
    return total


def official_rl(case: Case) -> Tensor:
    return over_rollouts(case, lambda i, logprob, ratio: (ratio * centred(case, i, std=False)).sum() / C) / 8


def shaped_rl(case: Case, z: Callable[[Tensor], float]) -> Tensor:
    def objective(i: int, logprob: Tensor) -> Tensor:
        p = logprob.exp()
        return (p / (p + 0.1) * case.samples.rewards[i]).sum() / z(logprob)

    return over_demos(case, objective)


def hpt_rl(case: Case) -> Tensor:
    return over_rollouts(case, lambda i, logprob, ratio: (ratio * centred(case, i, std=False)).sum() / C) / 12


def hpt_paper(case: Case) -> Tensor:
    rl = over_rollouts(case, lambda i, logprob, ratio: ppo_clip(ratio, centred(case, i, std=True)).sum()) / 12
    return rl + sft(case)


def tokens_of(case: Case, demo: bool) -> int:
    return sum(span.stop - span.start for _, span in case.spans(demo))


def dft(case: Case) -> Tensor:
    return over_demos(case, lambda i, logprob: (logprob.exp().detach() * logprob).mean()) / 3


def dft_paper(case: Case) -> Tensor:
    return over_demos(case, lambda i, logprob: (logprob.exp().detach() * logprob).sum()) / 3


def iw_sft(case: Case) -> Tensor:
    spans = dict(case.spans(demo=True))

    def objective(i: int, logprob: Tensor) -> Tensor:
        weight = (logprob - case.samples.ref_logprobs[spans[i]]).mean().exp().detach().clamp(max=16)
        return weight * logprob.sum()

    return over_demos(case, objective) / tokens_of(case, demo=True)


def token_grpo(case: Case) -> Tensor:
    total = over_rollouts(case, lambda i, logprob, ratio: ppo_clip(ratio, centred(case, i, std=True)).sum())
    return total / tokens_of(case, demo=False)


def chord_mu(case: Case, mu: float = 0.9) -> Tensor:
    sft = over_demos(case, lambda i, logprob: logprob.sum()) / tokens_of(case, demo=True)
    return (1 - mu) * token_grpo(case) + mu * sft


def chord_phi(case: Case) -> Tensor:
    def objective(i: int, logprob: Tensor) -> Tensor:
        p = logprob.exp().detach()
        return (p * (1 - p) * logprob).sum()

    return 0.9 * token_grpo(case) + 0.1 * over_demos(case, objective) / tokens_of(case, demo=True)


def rl_plus(case: Case) -> Tensor:
    def off(i: int, logprob: Tensor) -> Tensor:
        p, p_old = logprob.exp(), logprob.exp().detach()
        author = (p_old + 1) / 2
        ratio = 2 * p / (author + p_old)
        return (ratio * centred(case, i, std=False, union=True) * (1 - p_old) ** 0.5).sum()

    def on(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        return (ratio * centred(case, i, std=False, union=True)).sum()

    return (over_rollouts(case, on) + over_demos(case, off)) / (3 * 5 * C)


def opd(case: Case) -> Tensor:
    spans = dict(case.spans(demo=False))

    def objective(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        return (ratio * (case.samples.ref_logprobs - case.samples.old_logprobs)[spans[i]]).sum()

    return over_rollouts(case, objective) / tokens_of(case, demo=False)


def prefix_rft(case: Case) -> Tensor:
    """The case's demonstrations are prefixes, each continued by the last rollout of its prompt."""
    spans = dict(case.spans(demo=True))

    def on(i: int, logprob: Tensor, ratio: Tensor) -> Tensor:
        return ppo_clip(ratio, centred(case, i, std=False)).sum()

    def off(i: int, logprob: Tensor) -> Tensor:
        kept = case.samples.entropy[spans[i]].topk(math.ceil(len(logprob) / 5)).indices
        advantage = case.samples.rewards[i] - group_rewards(case, i, union=False).mean()
        return (advantage * logprob[kept]).sum()

    return (over_rollouts(case, on) + over_demos(case, off)) / (3 * 4 * C)


def uft(case: Case) -> Tensor:
    likelihood = over_demos(case, lambda i, logprob: logprob.sum()) / tokens_of(case, demo=True)
    return token_grpo(case) + 0.001 * likelihood


BOTH, ROLLOUTS, DEMOS = (True, True), (True, False), (False, True)

CLASSICAL: dict[tuple[str, str, str | None], tuple[tuple[bool, bool], Callable[[Case], Tensor]]] = {
    ("sft", "default", None): (DEMOS, sft),
    ("sft", "paper", None): (DEMOS, sft_paper),
    ("sft", "official", None): (DEMOS, lambda case: official_sft(case) + official_entropy(case)),
    ("reinforce", "default", None): (ROLLOUTS, reinforce),
    ("rloo", "default", None): (ROLLOUTS, rloo),
    ("ppo", "default", None): (ROLLOUTS, ppo),
    ("grpo", "default", None): (ROLLOUTS, grpo),
    ("grpo", "official", None): (ROLLOUTS, lambda case: official_rl(case) + official_entropy(case)),
    ("dr_grpo", "default", None): (ROLLOUTS, dr_grpo),
    ("dapo", "default", None): (ROLLOUTS, dapo),
    ("cispo", "default", None): (ROLLOUTS, cispo),
    ("gspo", "default", None): (ROLLOUTS, gspo),
    ("luffy", "default", None): (BOTH, luffy),
    ("luffy", "paper", None): (BOTH, luffy_paper),
    ("luffy", "official", None): (BOTH, luffy_official),
    ("srft", "default", None): (BOTH, srft),
    ("srft", "official", None): (BOTH, srft_official),
    ("srft_official", "default", None): (BOTH, srft_official),
    ("hpt", "default", "sft"): (BOTH, lambda case: hpt_rl(case) + sft(case)),
    ("hpt", "default", "off_policy"): (
        BOTH,
        lambda case: hpt_rl(case) + shaped_rl(case, lambda logprob: 3 * C),
    ),
    ("hpt", "default", "mix"): (
        BOTH,
        lambda case: hpt_rl(case) + 0.1 * sft(case) + shaped_rl(case, lambda logprob: 3 * C),
    ),
    ("hpt", "paper", "sft"): (BOTH, hpt_paper),
    ("hpt", "paper", "off_policy"): (
        BOTH,
        lambda case: hpt_paper(case) - sft(case) + shaped_rl(case, lambda logprob: 3 * len(logprob)),
    ),
    ("hpt", "paper", "mix"): (
        BOTH,
        lambda case: hpt_paper(case) - 0.9 * sft(case) + shaped_rl(case, lambda logprob: 3 * len(logprob)),
    ),
    ("hpt", "official", "sft"): (
        BOTH,
        lambda case: official_rl(case) + official_sft(case) + official_entropy(case),
    ),
    ("hpt", "official", "off_policy"): (
        BOTH,
        lambda case: official_rl(case) + shaped_rl(case, lambda logprob: 8 * C) + official_entropy(case),
    ),
    ("hpt", "official", "mix"): (
        BOTH,
        lambda case: (
            official_rl(case)
            + official_sft(case, 0.1)
            + shaped_rl(case, lambda logprob: 8 * C)
            + official_entropy(case)
        ),
    ),
    ("superrl", "default", None): (BOTH, lambda case: grpo(case) + sft(case)),
    ("dft", "default", None): (DEMOS, dft),
    ("dft", "paper", None): (DEMOS, dft_paper),
    ("iw_sft", "default", None): (DEMOS, iw_sft),
    ("chord_mu", "default", None): (BOTH, chord_mu),
    ("chord_phi", "default", None): (BOTH, chord_phi),
    ("rl_plus", "default", None): (BOTH, rl_plus),
    ("opd", "default", None): (ROLLOUTS, opd),
    ("prefix_rft", "default", None): (BOTH, prefix_rft),
    ("uft", "default", None): (BOTH, uft),
    ("bread", "default", None): (ROLLOUTS, grpo),
}


def test_every_sample_of_the_table_has_a_classical_loss():
    assert {name for name, _, _ in CLASSICAL} == set(ALGORITHMS)
    official = {name for name, algorithm in ALGORITHMS.items() if algorithm.official} - {"srft_official"}
    assert {name for name, mode, _ in CLASSICAL if mode == "official"} == official


@pytest.mark.parametrize(("name", "mode", "branch"), CLASSICAL, ids=lambda x: str(x))
def test_gradient_equals_the_classical_loss(name, mode, branch):
    streams, classical = CLASSICAL[name, mode, branch]
    estimator = make_estimator(name, mode=mode, offline_branch=branch, length_constant=C)
    case = make_case(*streams, prefixes=estimator.trains_prefixes)
    loss, _ = estimator.loss(case.samples, batch=case.batch)
    mine, theirs = case.gradient(loss), case.gradient(classical(case))
    assert theirs.abs().max() > 1e-4
    assert (mine - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("name", "mode", "branch"), CLASSICAL, ids=lambda x: str(x))
def test_gradient_equals_coefficients_times_score_over_z(name, mode, branch):
    """∇L = −Σ_k Σ_t c_k,t · scale_k,sample(t) · ∇log π_t, with ∇log π_t from the network token by token."""
    streams, _ = CLASSICAL[name, mode, branch]
    estimator = make_estimator(name, mode=mode, offline_branch=branch, length_constant=C, entropy_coef=0.0)
    case = make_case(*streams, prefixes=estimator.trains_prefixes)
    samples = case.samples
    gate = torch.ones(len(samples.is_demo))
    weights = estimator.weigh(
        samples.sample_lengths,
        samples.group_ids,
        samples.rewards,
        samples.is_demo,
        gate,
        case.batch,
        values=samples.values,
        teacher_gaps=(samples.ref_logprobs - samples.old_logprobs).nan_to_num(),
    )
    coefficients = estimator.term_coefficients(samples, weights)
    scales = torch.as_tensor(weights.scales).repeat_interleave(samples.sample_lengths, dim=1)
    expected = torch.zeros(sum(p.numel() for p in case.parameters), dtype=torch.float64)
    for t, weight in enumerate((coefficients * scales).sum(0)):
        expected -= weight * case.gradient(samples.logprobs[t])
    mine = case.gradient(estimator.loss(samples, weights)[0])
    assert mine.abs().max() > 1e-4
    assert (mine - expected).abs().max() <= TOLERANCE


def test_clips_bite_in_the_golden_case():
    """Otherwise the comparison with `min` would prove nothing."""
    case = make_case(demonstrations=False)
    for name in (
        "ppo",
        "grpo",
        "dr_grpo",
        "dapo",
        "cispo",
        "gspo",
        "superrl",
        "chord_mu",
        "chord_phi",
        "uft",
        "bread",
    ):
        _, stats = make_estimator(name).loss(case.samples, batch=case.batch)
        clipped, tokens = stats["policy/clip_share"]
        assert 0 < clipped < tokens, name


def test_the_weight_of_iw_sft_is_capped():
    """One demonstration is e⁴ times as likely as under the frozen policy, which counts 16."""
    case = make_case(rollouts=False)
    _, span = case.spans(demo=True)[0]
    case.samples.ref_logprobs[span] = case.samples.logprobs[span].detach() - 4
    loss, stats = make_estimator("iw_sft").loss(case.samples, batch=case.batch)
    assert (case.gradient(loss) - case.gradient(iw_sft(case))).abs().max() <= TOLERANCE
    assert stats["policy/clip_share"] == (span.stop - span.start, tokens_of(case, demo=True))


@pytest.mark.parametrize(
    ("step", "mu"), [(0, 0.9), (50, 0.05 + 0.85 * (2 + 2**0.5) / 4), (100, 0.475), (200, 0.05), (999, 0.05)]
)
def test_chord_mixes_by_a_falling_mu(step, mu):
    case = make_case()
    estimator = make_estimator("chord_mu").at(step)
    loss, _ = estimator.loss(case.samples, batch=case.batch)
    assert (case.gradient(loss) - case.gradient(chord_mu(case, mu))).abs().max() <= TOLERANCE


def test_mu_mixes_the_streams_of_any_algorithm():
    case = make_case()
    estimator = make_estimator("hpt", mu=[0.25], length_constant=C).at(7)
    loss, _ = estimator.loss(case.samples, batch=case.batch)
    assert (
        case.gradient(loss) - case.gradient(0.75 * hpt_rl(case) + 0.25 * sft(case))
    ).abs().max() <= TOLERANCE


def test_gae_by_hand():
    advantage = gae(
        torch.tensor([0.0, 0.0, 1.0, 2.0]).numpy(),
        torch.tensor([0.5, 0.25, 0.75, 1.0]).numpy(),
        torch.tensor([3, 1]).numpy(),
        discount=0.9,
        lam=0.5,
    )
    third = 1.0 - 0.75
    second = 0.9 * 0.75 - 0.25 + 0.45 * third
    first = 0.9 * 0.25 - 0.5 + 0.45 * second
    assert advantage.tolist() == pytest.approx([first, second, third, 2.0 - 1.0], abs=1e-7)


def test_gate_weights_and_coefficients_multiply_the_streams():
    case = make_case()
    samples, batch = case.samples, case.batch
    estimator = make_estimator("hpt", rollout_coef=4.0, demo_coef=0.3, length_constant=C)
    alpha = torch.where(samples.is_demo, 0.25, 0.5)
    weights = estimator.weigh(
        samples.sample_lengths, samples.group_ids, samples.rewards, samples.is_demo, alpha, batch
    )
    mine = case.gradient(estimator.loss(samples, weights)[0])
    theirs = case.gradient(4 * 0.5 * hpt_rl(case) + 0.3 * 0.25 * sft(case))
    assert (mine - theirs).abs().max() <= TOLERANCE
