"""Rollouts that continue a prefix: how long it is, what is asked of the engines, and what it does not count as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hpt_ray.algorithms import GATES, estimator_from_config, make_estimator
from hpt_ray.algorithms.base import Prefixes
from hpt_ray.algorithms.batch import Settings, TokenBatch, token_view
from hpt_ray.algorithms.gates import Attempt, attempt_of, samples_of
from hpt_ray.algorithms.prefixes import falling, first_tokens, prefix_of, search
from hpt_ray.algorithms.token_parts import SHAPINGS
from hpt_ray.config.load import load_config
from hpt_ray.data.mini.base import tokenizer_path
from hpt_ray.driver.batches import BatchStream
from hpt_ray.driver.setup import PreparedPhase, asked_of, check_algorithm, check_demonstrations, loader
from hpt_ray.driver.step_metrics import advantages_of, rollout_metrics, tokens_saved
from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import read_groups, write_groups
from hpt_ray.rollout.requests import GenerateRequest
from hpt_ray.types import Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

N, L = 4, 20
DEMO = np.arange(100, 100 + L, dtype=np.int32)
RIGHT, WRONG = RewardResult(1.0, Outcome.CORRECT), RewardResult(0.0, Outcome.WRONG)


def prompt(name: str = "set/0", *, demo: np.ndarray | None = DEMO) -> Prompt:
    shown = None if demo is None else Demonstration(demo, "shown")
    return Prompt(name, np.array([1, 9], np.int32), "q", "4", "set", shown)


def rollout(sample: int, prefix_length: int = 0, num_sampled: int = 3) -> Rollout:
    tokens = np.concatenate([DEMO[:prefix_length], np.arange(num_sampled, dtype=np.int32)])
    logprobs = np.full(len(tokens), -0.5, np.float32)
    logprobs[:prefix_length] = np.nan
    return Rollout("set/0", sample, tokens, logprobs, FinishReason.STOP, 3, "", prefix_length)


def group(lengths: list[int], correct: list[int]) -> Group:
    rollouts = [rollout(i, length) for i, length in enumerate(lengths)]
    return Group(prompt(), rollouts, [RIGHT if right else WRONG for right in correct])


def stream(*words: str, before: int = 0) -> BatchStream:
    sizes = ["prompts_per_step=2", f"group_size={N}", "model.path=mini:t", "run.steps=9"]
    config = load_config(None, [*sizes, *words])
    estimator = estimator_from_config(config.algorithm)
    phase = PreparedPhase(
        number=1,
        before=before,
        config=config,
        prompts=[prompt("a"), prompt("b")],  # type: ignore[arg-type]
        estimator=estimator,
        gate=estimator.gate,
        num_rollouts=N,
    )
    return BatchStream(phase, stop_token_ids=(2,))


def asked(batches: BatchStream, step: int, name: str = "a", **changes: Any) -> list[GenerateRequest]:
    return batches._requests(name, prompt(name, **changes), step, 30.0)


# ---- how long -------------------------------------------------------------------------------------


def shares(prefixes: Prefixes, step: int, count: int = 400) -> np.ndarray:
    """k/L of many prompts at a step; of a demonstration so long that rounding does not show."""
    asked = prompt(demo=np.zeros(10_000, np.int32))
    return np.array([len(prefix_of(asked, prefixes, step, seed)) / 10_000 for seed in range(count)])


def test_prefix_rft_draws_evenly_between_what_falls_and_the_first_value() -> None:
    prefixes = Prefixes("last", (0.95, 0.05, 100))
    assert shares(prefixes, 0) == pytest.approx(0.95)
    middle, end = shares(prefixes, 50), shares(prefixes, 100)
    assert 0.5 <= middle.min() < 0.51
    assert 0.94 < middle.max() <= 0.95
    assert 0.05 <= end.min() < 0.06
    assert end.mean() == pytest.approx(0.5, abs=0.05)
    assert (shares(prefixes, 500) == end).all()


def test_uft_draws_fifths_with_a_mean_that_falls_and_none_after_the_last() -> None:
    prefixes = Prefixes("all", (0.95, 0.05, 100))
    for step, mean in ((0, 0.95), (50, 0.5), (99, falling((0.95, 0.05, 100), 99))):
        found = shares(prefixes, step)
        assert found.mean() == pytest.approx(mean, abs=0.04)
        # all of it but for the last token
        assert set(found) <= {0.0, 0.2, 0.4, 0.6, 0.8, 0.9999}
    assert not shares(prefixes, 100).any()
    assert shares(Prefixes("all", (0.5, 0.5, 0)), 10**6).mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("share", "length"), [(0, 0), (0.5, 10), (0.549, 10), (0.35, 7), (1, 19)])
def test_a_rollout_has_a_token_of_its_own(share: float, length: int) -> None:
    assert first_tokens(prompt(), share).tolist() == DEMO[:length].tolist()
    assert not len(first_tokens(prompt(demo=DEMO[:1]), share))
    assert not len(first_tokens(prompt(demo=None), share))


# ---- what is asked for ----------------------------------------------------------------------------


def test_only_the_last_rollout_continues_a_prefix() -> None:
    most, last = asked(stream("algorithm.name=prefix_rft", "algorithm.prefix=[0.5]"), step=1)
    assert (most.samples, last.samples) == ((0, 1, 2), (3,))
    assert not len(most.prefix)
    assert last.prefix.tolist() == DEMO[:10].tolist()
    assert last.expected_tokens == 20.0
    (plain,) = asked(stream("algorithm.name=grpo"), step=1)
    assert plain.seeds == most.seeds + last.seeds


def test_all_rollouts_continue_the_same_prefix_in_uft() -> None:
    (request,) = asked(stream("algorithm.name=uft", "algorithm.prefix=[1.0]"), step=1)
    assert (request.samples, len(request.prefix)) == ((0, 1, 2, 3), L - 1)


def test_a_prompt_without_a_demonstration_is_asked_as_it_is() -> None:
    for name in ("prefix_rft", "uft"):
        (request,) = asked(stream(f"algorithm.name={name}"), step=1, demo=None)
        assert not len(request.prefix)


def test_a_prefix_follows_from_seed_step_and_prompt_alone() -> None:
    words = ("algorithm.name=prefix_rft", "algorithm.prefix=[0.95,0.05,5]")

    def drawn(batches: BatchStream, name: str = "a") -> list[int]:
        return [len(asked(batches, step, name)[1].prefix) for step in range(3, 12)]

    batches = stream(*words, before=2)
    lengths = drawn(batches)
    assert lengths == drawn(stream(*words, before=2))
    assert len(set(lengths)) > 3
    assert lengths[0] == int(0.95 * L)  # a phase begins with its first value
    assert lengths != drawn(batches, "b")
    assert lengths != drawn(stream(*words, "run.seed=1", before=2))


def test_what_only_prefixes_can_use_is_refused() -> None:
    config = load_config(None, ["model.path=mini:t"])
    for name, gate in (("uft", "rollouts"), ("prefix_rft", "switch"), ("grpo", "prefixes")):
        with pytest.raises(UserError, match=r"selection\.gate=auto"):
            check_algorithm(config, make_estimator(name), gate)
    check_algorithm(config, make_estimator("uft"), "prefixes")


def test_data_without_any_demonstration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "2 + 2?", "answer": "4"}\n', encoding="utf-8")
    words = ["algorithm.name=uft", "model.path=mini:t", f"data.train=[{file}]", "data.template=plain"]
    config = load_config(None, words)
    _, load = loader(config, tokenizer_path(config.model.path))
    prompts = load(config.data.train, **asked_of(config, "prefixes"))
    with pytest.raises(UserError, match="gate prefixes trains on demonstrations, and there is none"):
        check_demonstrations(config, "prefixes", N, prompts)


# ---- drawn again ----------------------------------------------------------------------------------


def searched(chance: Callable[[int], list[int]]) -> list[tuple[int, list[int]]]:
    """The draws of a prompt, whose rollouts are right as `chance` says of the length of their prefix."""
    drawn, length, rollouts, results = [], 0, [], []
    while True:
        right = chance(length)
        drawn.append((length, right))
        rollouts += [rollout(len(rollouts) + i, length) for i in range(len(right))]
        results += [RIGHT if one else WRONG for one in right]
        length = search(Group(prompt(), rollouts, results))
        if not length:
            return drawn
        assert len(drawn) < 9, "it does not end"


@pytest.mark.parametrize(
    ("right_from", "lengths"),
    [(0, [0]), (2, [0, 10, 6, 4, 2]), (9, [0, 10, 6, 8]), (12, [0, 10, 16, 14, 12]), (99, [0, 10, 16, 18])],
)
def test_the_search_halves_what_is_left(right_from: int, lengths: list[int]) -> None:
    """All are right from some length on: the shortest such is found, or all is tried that may be."""
    found = searched(lambda k: [int(k >= right_from)] * 2)
    assert [length for length, _ in found] == lengths


def test_the_search_ends_where_some_are_right_and_some_wrong() -> None:
    assert searched(lambda k: [0, 1]) == [(0, [0, 1])]
    assert [k for k, _ in searched(lambda k: [int(k >= 6), int(k >= 16)])] == [0, 10]
    assert [k for k, _ in searched(lambda k: [int(k >= 5), int(k >= 8)])] == [0, 10, 6]


def test_what_cannot_be_searched_is_left() -> None:
    wrong = [WRONG] * 2
    assert search(Group(prompt(demo=None), [rollout(0), rollout(1)], wrong)) == 0
    assert search(Group(prompt(demo=DEMO[:1]), [rollout(0), rollout(1)], wrong)) == 0
    lost = Rollout.missing("set/0", 1, FinishReason.LOST)
    assert search(Group(prompt(), [rollout(0), lost], wrong)) == 0
    failed = [RewardResult(0.0, Outcome.ERROR)] * 2
    assert search(Group(prompt(), [rollout(0), rollout(1)], failed)) == 10
    # Nothing is known of 10, and it is not drawn twice.
    assert search(Group(prompt(), [rollout(0), rollout(1, 10)], [WRONG, failed[0]])) not in (0, 10)


def test_only_the_last_draw_trains_and_only_the_first_is_the_policys_own() -> None:
    group_of_six = group([0, 0, 10, 10, 6, 6], [0, 0, 1, 1, 1, 0])
    group_of_six.rollouts[:4] = [replace(r, superseded=True) for r in group_of_six.rollouts[:4]]
    decision = GATES["prefixes"].function(group_of_six, 0.0, ())
    assert attempt_of(group_of_six) == Attempt(0, 2)
    samples = samples_of(group_of_six, decision, index=0)
    assert [(sample.prompt_length, sample.reward) for sample in samples] == [(8, 1.0), (8, 0.0)]
    known = advantages_of(group_of_six, decision, make_estimator("bread"))
    assert known[:4] == [None] * 4
    assert known[4:] == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-5)


def test_a_search_beside_later_steps_is_not_deterministic() -> None:
    words = ["algorithm.name=bread", "model.path=mini:t", "rollout.max_off_policy_steps=1"]
    estimator = make_estimator("bread")
    check_algorithm(load_config(None, words), estimator, "prefixes")
    with pytest.raises(UserError, match="in an order that no two runs share"):
        check_algorithm(load_config(None, [*words, "run.deterministic=true"]), estimator, "prefixes")


# ---- what it counts as ----------------------------------------------------------------------------


def test_a_success_that_continues_a_prefix_is_not_the_policys_own() -> None:
    half = group([0, 0, 5, 5], [0, 1, 1, 1])
    assert half.num_correct == 1
    assert attempt_of(half) == Attempt(1, 2)
    decision = GATES["prefixes"].function(half, 0.0, ())
    assert (decision.num_correct, decision.num_rollouts) == (1, 2)
    assert attempt_of(group([5] * N, [1] * N)) == Attempt(0, 0)


def test_rollout_and_prefix_are_two_samples() -> None:
    mixed = group([0, 0, 6, 8], [0, 1, 1, 0])
    decision = GATES["prefixes"].function(mixed, 0.0, ())
    *rollouts, short, long = samples_of(mixed, decision, index=1, prefixes=True)
    assert [sample.prompt_length for sample in rollouts] == [2, 2, 8, 10]
    assert all(sample.token_ids[sample.prompt_length :].tolist() == [0, 1, 2] for sample in rollouts)
    assert all(np.isfinite(sample.old_logprobs).all() for sample in rollouts)
    for sample, length, reward in ((short, 6, 1.0), (long, 8, 0.0)):
        assert sample.is_demo
        assert sample.reward == reward
        assert sample.token_ids.tolist() == [1, 9, *DEMO[:length]]
        assert np.isnan(sample.old_logprobs).sum() == sample.response_length == length
    assert len(samples_of(mixed, decision, index=1)) == N
    mean_of_two = samples_of(group([7, 7, 0, 0], [0, 1, 1, 1]), decision, index=1, prefixes=True)[-1]
    assert (mean_of_two.response_length, mean_of_two.reward) == (7, 0.5)


def test_a_prefix_without_a_rollout_that_has_a_reward_does_not_train() -> None:
    lost = group([0, 0, 0, 6], [1, 0, 0, 1])
    lost.results[3] = RewardResult(0.0, Outcome.ERROR)
    decision = GATES["prefixes"].function(lost, 0.0, ())
    assert not any(sample.is_demo for sample in samples_of(lost, decision, index=0, prefixes=True))


def test_advantages_are_those_of_the_whole_group() -> None:
    mixed = group([0, 0, 0, 6], [0, 1, 0, 1])
    decision = GATES["prefixes"].function(mixed, 0.0, ())
    assert advantages_of(mixed, decision, make_estimator("prefix_rft")) == [-0.5, 0.5, -0.5, 0.5]


def test_metrics_tell_both_kinds_apart_and_count_what_was_sampled() -> None:
    mixed = group([0, 0, 6, 8], [0, 1, 1, 1])
    decision = GATES["prefixes"].function(mixed, 0.0, ())
    metrics = rollout_metrics([(mixed, decision)], rollout_s=2.0)
    assert (metrics["reward/mean"], metrics["reward/prefix_mean"]) == (0.5, 1.0)
    assert (metrics["rollout/prefix_ratio"], metrics["rollout/prefix_length_mean"]) == (0.5, 7.0)
    assert metrics["rollout/length_mean"] == (3 + 3 + 9 + 11) / 4
    assert metrics["rollout/tokens_per_s"] == 4 * 3 / 2.0
    mixed.rollouts[0] = Rollout.missing("set/0", 0, FinishReason.ABORT)
    assert tokens_saved([(mixed, decision)], 1) == 2.0
    plain = rollout_metrics([(group([0] * N, [1] * N), decision)], rollout_s=2.0)
    assert not any("prefix" in name for name in plain)


def test_dumps_hold_prefixes_and_older_ones_have_none(tmp_path: Path) -> None:
    mixed = group([0, 0, 6, 8], [0, 1, 1, 1])
    mixed.rollouts[0] = replace(mixed.rollouts[0], superseded=True)
    path = write_groups(tmp_path / "groups.parquet", [mixed])
    (found,) = read_groups(path, {"set/0": mixed.prompt})
    assert [r.prefix_length for r in found.rollouts] == [0, 0, 6, 8]
    assert [r.superseded for r in found.rollouts] == [True, False, False, False]
    assert np.isnan(found.rollouts[2].logprobs).sum() == 6
    pq.write_table(pq.read_table(path).drop_columns(["prefix_length", "superseded"]), path)
    (older,) = read_groups(path, {"set/0": mixed.prompt})
    assert not any(r.prefix_length or r.superseded for r in older.rollouts)


@pytest.mark.parametrize(("gamma", "kept"), [(0.2, [1, 1, 2, 0]), (0.5, [1, 3, 3, 0]), (1.0, [1, 5, 6, 0])])
def test_the_least_certain_tokens_of_each_sample_are_kept(gamma: float, kept: list[int]) -> None:
    lengths = torch.tensor([1, 5, 6])
    entropy = torch.tensor([0.0, 0.3, 0.9, 0.1, 0.8, 0.2, 5.0, 4.0, 3.0, 2.0, 6.0, 1.0])
    samples = TokenBatch(
        torch.zeros(12), torch.zeros(12), lengths, torch.arange(3), torch.ones(3), torch.ones(3), entropy
    )
    view = token_view(samples, replace(Settings(), shaping_gamma=gamma))
    factor: Callable = SHAPINGS["top_entropy"].function
    inside = factor(view).exp()
    assert set(inside.tolist()) <= {0.0, 1.0}
    for part, values, number in zip(inside.split([1, 5, 6]), entropy.split([1, 5, 6]), kept, strict=False):
        assert part.nonzero().ravel().tolist() == sorted(values.topk(number).indices.tolist())
