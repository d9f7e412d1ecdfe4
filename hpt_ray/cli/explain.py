"""`python -m hpt_ray.cli.explain [--all] [--config FILE …] [key=value …]`

Prints what the algorithm of a configuration computes: the four parts of each term with their formulas, the loss
aggregation, which prompts get which data, the mode, and every number of one small group, by the gate and the
estimator that train. With `--all`, the tables of what a configuration may name instead: algorithms, gates, reward
functions, backends, trackers. Reads no data and starts nothing. Exit code 2: the user must change something.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hpt_ray.algorithms import GATES, BatchShape, Estimator, SampleWeights, TokenBatch, describe, overview
from hpt_ray.algorithms.base import Prefixes
from hpt_ray.algorithms.build import aligned
from hpt_ray.algorithms.estimator import FAMILIES
from hpt_ray.algorithms.gates import samples_of
from hpt_ray.algorithms.prefixes import PREFIX_RULES
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import QUICKSTART, load_config
from hpt_ray.config.phases import Phase
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import choices_of, is_own_reference
from hpt_ray.errors import exit_code
from hpt_ray.learner.packing import WeightedSample
from hpt_ray.learner.scoring import kl_in_reward, needs_scores, weight_samples
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS
from hpt_ray.types import (
    Decision,
    Demonstration,
    FinishReason,
    Group,
    Outcome,
    Prompt,
    RewardResult,
    Rollout,
    Sample,
)
from hpt_ray.utils import arguments, plugins
from hpt_ray.weight_sync.backends import BACKENDS

# The example: one prompt with four rollouts of these lengths and a demonstration. Tokens have the
# log-probs of this list in turn; the policy has moved a little since it sampled, up and down in turn.
LENGTHS, DEMO_LENGTH = (3, 2, 4, 2), 3
LOGPROBS = (-0.1, -0.5, -1.2, -0.3, -2.0)
MOVES = (0.05, -0.05, 0.3, -0.3)
ENTROPIES = (0.4, 0.9, 1.5)
VALUES = (0.2, 0.4, 0.6, 0.7)
REFERENCE_GAP = -0.1  # log π_frozen − log π_old
# The columns of the table of algorithms.
SYMBOLS = {"clip": "m", "denominator": "π_ref", "advantage": "Â", "shaping": "s", "loss_aggregation": "Z"}
DEFAULT = (
    "With the settings of configs/quickstart.yaml, as no --config FILE is named. Another algorithm: "
    "algorithm.name=grpo; their names: --all."
)


def main(words: Sequence[str] | None = None) -> int:
    """Print the explanation, or what is wrong; the exit code."""
    options = arguments.explain(words)
    try:
        config = load_config(options.config or str(QUICKSTART), options.overrides)
        plugins.load(config.run.plugins)
        check_config(config)
        text = tables() if options.all else explain(config)
        print(text if options.config or options.all else f"{DEFAULT}\n\n{text}")
        return 0
    except Exception as error:
        return exit_code(error)


def explain(config: Config) -> str:
    """The whole text, phase by phase. Raises `UserError` for a combination that makes no sense."""
    chosen = choices_of(config)
    if len(chosen) == 1:
        return _explain(*chosen[0][:3])
    return "\n\n".join(
        f"Phase {phase.number}, steps {phase.before + 1} to {phase.last}\n\n{_explain(phase, estimator, gate)}"
        for phase, estimator, gate, _ in chosen
    )


def tables() -> str:
    """Every algorithm with its parts (the paper's Table 1) and their formulas, then whatever else a configuration may
    name; that of plugins too."""
    parts = {
        (family.replace("_", " "), symbol): {name: part.formula for name, part in FAMILIES[family].items()}
        for family, symbol in SYMBOLS.items()
    }
    others = {
        ("gate", "a step trains on"): {name: gate.data for name, gate in GATES.items()},
        ("reward function", "what makes a response correct"): {
            kind.usage: kind.doc for kind in REWARD_FUNCTIONS.values()
        },
        ("weight sync backend", "what it is"): {name: backend.doc for name, backend in BACKENDS.items()},
        ("tracker", "where its metrics go"): {name: kind.doc for name, kind in TRACKERS.items()},
    }
    blocks = ["\n".join(aligned([head, *rows.items()])) for head, rows in (parts | others).items()]
    return "\n\n".join([overview(), *blocks])


def _explain(phase: Phase, estimator: Estimator, name: str) -> str:
    config, gate = phase.config, GATES[name]
    n, gamma = estimator.num_rollouts(config.group_size), config.selection.gamma
    rule = gate.data if gate.rule is None else gate.rule(gamma, n)
    head = f"  gate {name:<7} {rule}" if len(name) <= 7 else f"  gate         {name}: {rule}"
    parts = [describe(estimator), *_sizes(config, estimator), head]
    for rewards in ((1, 0, 0, 1), (0, 0, 0, 0)) if gate.by_results else ((1, 0, 0, 1),):
        count = estimator.num_rollouts(len(rewards)) if gate.needs_rollouts else 0
        group = _group(rewards[:count], estimator.prefixes)
        parts += ["", *_example(config, estimator, group, gate.function(group, gamma, ()))]
    return "\n".join(parts)


def _sizes(config: Config, estimator: Estimator) -> list[str]:
    n = estimator.num_rollouts(config.group_size)
    c = estimator.settings.length_constant or config.data.max_response_tokens
    prompts = config.prompts_per_step // config.updates_per_step
    lines = [f"  sizes        N = {prompts} prompts per update, n = {n} rollouts each, C = {c:g}"]
    if rows := config.data.rehearsal_per_step // config.updates_per_step:
        files = ", ".join(config.data.rehearsal)
        lines.append(
            f"  rehearsal    M = {rows} rows per update of {files}, each over N·L: M/N = {rows / prompts:g} of SFT's "
            "weight on all prompts"
        )
    if estimator.needs_values:
        critic = config.critic
        lines.append(
            f"  critic       its own actors; ½ max((V − G)², (clip(V, V_old ± {critic.value_clip:g}) − G)²) "
            f"/ Z, G = Â + V, learning rate {critic.learning_rate:g}"
        )
    if config.learner.base_pull:
        lines.append(
            f"  base pull    θ ← θ − lr·κ·(θ − θ₀) after each update, κ = {config.learner.base_pull:g}, "
            f"θ₀ = {config.model.path}   (L2-SP, arXiv 1802.01483)"
        )
    if estimator.needs_reference:
        where = "the learner with its adapters off" if is_own_reference(config) else "its own actors"
        lines.append(f"  reference    {where}; {config.reference.path or config.model.path}, frozen")
    return lines


# -- the worked example --------------------------------------------------------------------------------


def _group(rewards: Sequence[int], prefixes: Prefixes | None) -> Group:
    prompt = Prompt(
        id="example",
        token_ids=np.zeros(1, np.int32),
        text="",
        ground_truth="",
        data_source="",
        demonstration=Demonstration(np.zeros(DEMO_LENGTH, np.int32), ""),
    )
    tokens = [np.zeros(length, np.int32) for length in LENGTHS[: len(rewards)]]
    rollouts = [
        Rollout("example", i, ids, _cycle(LOGPROBS, len(ids), i), FinishReason.STOP, 0, "")
        for i, ids in enumerate(tokens)
    ]
    if prefixes is not None:  # of one token
        first = len(rollouts) - 1 if PREFIX_RULES[prefixes.rule].only_last else 0
        rollouts[first:] = [replace(rollout, prefix_length=1) for rollout in rollouts[first:]]
    results = [RewardResult(float(r), Outcome.CORRECT if r else Outcome.WRONG) for r in rewards]
    return Group(prompt, rollouts, results)


def _cycle(values: Sequence[float], length: int, start: int) -> np.ndarray:
    return np.array([values[(start + t) % len(values)] for t in range(length)], np.float32)


def _example(config: Config, estimator: Estimator, group: Group, decision: Decision) -> list[str]:
    samples = samples_of(group, decision, index=0, prefixes=estimator.trains_prefixes)
    demonstration = "demonstration" if estimator.prefixes is None else "prefix"
    names = {
        id(sample): demonstration if sample.is_demo else f"rollout {i}" for i, sample in enumerate(samples, 1)
    }
    rewards = ", ".join(f"{result.score:g}" for result in group.results)
    lines = [
        "Example: one prompt (N = 1), "
        + (f"rewards [{rewards}], a demonstration. " if rewards else "a demonstration. ")
        + f"α = {decision.rollout_weight:g}, β = {decision.demo_weight:g} ({decision.reason})."
    ]
    for sample in samples:
        if not sample.is_demo and needs_scores(estimator):
            sample.values = _cycle(VALUES, sample.response_length, 0)
            sample.ref_logprobs = sample.old_logprobs + np.float32(REFERENCE_GAP)
    batch = BatchShape(1, max(len(group.rollouts), 1), config.data.max_response_tokens)
    weighed = weight_samples(estimator, samples, batch).samples
    kept = [item.sample for item in weighed]
    if kept:
        lines += _table_of(estimator, kept, _weights_of(weighed), [names[id(sample)] for sample in kept])
    skipped = [names[id(sample)] for sample in samples if all(sample is not other for other in kept)]
    if skipped:
        lines.append(f"  Not sent to the learner, for all their terms are exactly 0: {', '.join(skipped)}.")
    return lines


def _weights_of(weighed: list[WeightedSample]) -> SampleWeights:
    """The weights as a micro-batch carries them, one column of advantages a token."""
    return SampleWeights(
        advantages=np.concatenate([item.advantages for item in weighed], axis=1),
        scales=np.stack([item.scales for item in weighed], axis=1),
        entropy_scales=np.array([item.entropy_scale for item in weighed]),
        kl_scales=np.array([item.kl_scale for item in weighed]),
    )


def _table_of(
    estimator: Estimator, samples: list[Sample], weights: SampleWeights, names: list[str]
) -> list[str]:
    """One line per sample and term, and what they add up to."""
    tokens = _token_samples(samples)
    coefficients = estimator.term_coefficients(tokens, weights).numpy()
    advantages, scales = np.asarray(weights.advantages), np.asarray(weights.scales)
    cells = [("sample", "reward", "term", "Â", "log π", "π/π_old", "c", "scale", "contribution")]
    policy_loss, start = 0.0, 0
    for i, sample in enumerate(samples):
        span = slice(start, start + sample.response_length)
        start = span.stop
        logprob = tokens.logprobs[span].numpy()
        for k, term in enumerate(estimator.terms):
            if term.stream != ("demonstrations" if sample.is_demo else "rollouts"):
                continue
            c, advantage = coefficients[k, span], advantages[k, span]
            contribution = 0.0 - float(scales[k, i] * (c * logprob).sum())
            policy_loss += contribution
            cells.append(
                (
                    names[i],
                    f"{sample.reward:g}",
                    f"{k + 1}",
                    _numbers(advantage if estimator.advantages_per_token else advantage[:1]),
                    _numbers(logprob),
                    "none" if sample.is_demo else _numbers(np.exp(logprob - sample.old_logprobs)),
                    _numbers(c),
                    f"{scales[k, i]:.4g}",
                    f"{contribution:+.4f}",
                )
            )
    loss = float(estimator.loss(tokens, weights)[0])
    lines = [
        *(f"  {line}" for line in aligned(cells)),
        "  scale = coefficient · gate weight / Z,  contribution = −scale · Σ c · log π",
    ]
    if kl_in_reward(estimator):
        lines.append("  The reward is shown as graded; the KL is taken off before the advantage.")
    others = (
        f", entropy and KL {loss - policy_loss:+.4f}" if estimator.entropy_coef or estimator.kl_coef else ""
    )
    return [*lines, f"  policy terms {policy_loss:+.4f}{others}, loss {loss:+.4f}"]


def _token_samples(samples: list[Sample]) -> TokenBatch:
    """The samples as a forward pass would give them."""
    lengths = [sample.response_length for sample in samples]
    logprobs = [
        _cycle(LOGPROBS, length, 2)
        if sample.is_demo
        else np.minimum(sample.old_logprobs + _cycle(MOVES, length, i), -0.01)
        for i, (sample, length) in enumerate(zip(samples, lengths, strict=True))
    ]
    now = np.concatenate(logprobs)
    old_logprobs = np.concatenate([sample.old_logprobs for sample in samples])
    is_demo = np.repeat([sample.is_demo for sample in samples], lengths)
    return TokenBatch(
        logprobs=torch.from_numpy(now.astype(np.float64)),
        old_logprobs=torch.from_numpy(old_logprobs.astype(np.float64)),
        sample_lengths=torch.tensor(lengths),
        group_ids=torch.zeros(len(samples), dtype=torch.long),
        rewards=torch.tensor([sample.reward for sample in samples]),
        is_demo=torch.tensor([sample.is_demo for sample in samples]),
        entropy=torch.from_numpy(_cycle(ENTROPIES, sum(lengths), 0).astype(np.float64)),
        ref_logprobs=torch.from_numpy(
            np.where(is_demo, now, old_logprobs).astype(np.float64) + REFERENCE_GAP
        ),
    )


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value + 0.0:.3g}" for value in values)  # + 0.0: no −0


if __name__ == "__main__":
    sys.exit(main())
