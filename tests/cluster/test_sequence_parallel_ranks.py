"""Learner ranks that share each micro-batch (real actors, DeepSpeed on gloo), and a run of them."""

from __future__ import annotations

import pytest
from command import TINY, run_main, write_reward_function
from pair import DEMONSTRATIONS, MIXED, hpt_loss, starting
from plain import make_samples, norm
from probe import call, micro_batch_of

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model):
    with starting(tiny_model) as start:
        yield start


@pytest.mark.parametrize(
    ("num_ranks", "stage", "options"),
    [
        pytest.param(2, 0, {}, marks=pytest.mark.long),
        (2, 1, {}),
        pytest.param(2, 2, {"offload_optimizer": True}, marks=pytest.mark.long),
        (2, 3, {"gradient_checkpointing": True, "architecture": "llama", "tied": False}),
        (4, 2, {}),
        pytest.param(4, 3, {}, marks=pytest.mark.long),
    ],
)
def test_steps_equal_plain_pytorch(start, num_ranks, stage, options):
    """With samples across slices, micro-batches of a prompt alone, and none: a dummy has a token for each rank."""
    pair = start(num_ranks, stage, sequence_parallel=2, **options)
    for seed, groups in enumerate((MIXED, DEMONSTRATIONS, MIXED[1:2], [])):
        prompts = make_samples(pair.plain, groups, seed=seed)
        result, gradient = pair.step(prompts, hpt_loss, max_tokens_per_micro_batch=47)
        assert (norm(gradient) > 0.01) == bool(groups)
        assert result.num_samples == sum(map(len, prompts))


def test_what_is_reported_is_counted_once(start):
    results, scores = [], []
    for sharing in (1, 2):
        pair = start(2, 1, sequence_parallel=sharing)
        prompts = make_samples(pair.plain, MIXED, seed=7)
        scores += call(pair.ranks, "logprobs", micro_batch_of(prompts[0] + prompts[1]))
        results.append(pair.learn(prompts))
    alone, shared = results
    assert shared.num_tokens == alone.num_tokens > 0
    counted = {name: number for name, number in alone.metrics.items() if not name.startswith("memory/")}
    absent = {name for name, number in counted.items() if number is None}
    assert (
        absent == {"learner/rehearsal_loss"} == {n for n, number in shared.metrics.items() if number is None}
    )
    counted = {name: number for name, number in counted.items() if number is not None}
    assert "policy/logprob_gap_mean" in counted
    assert {name: shared.metrics[name] for name in counted} == pytest.approx(counted, rel=1e-4, abs=1e-7)
    for logprob, entropy in scores[1:]:
        assert logprob == pytest.approx(scores[0][0], abs=1e-5)
        assert entropy == pytest.approx(scores[0][1], abs=1e-5)


def test_a_run(tmp_path):
    """As a person runs it, with an evaluation whose demonstrations the ranks score together."""
    finished = run_main(
        [
            *TINY,
            f"run.dir={tmp_path}",
            "run.steps=3",
            f"reward.function={write_reward_function(tmp_path)}",
            "learner.num_ranks=2",
            "learner.sequence_parallel=2",
            "learner.zero_stage=3",
            "learner.gradient_checkpointing=true",
            "evaluation.sets={chain: mini:validation/chain}",
            "evaluation.demonstration_loss=true",
        ]
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = RunFolder((tmp_path / "latest").resolve()).read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert any(0 < line["selection/demo_prompt_ratio"] < 1 for line in lines)
    for line in lines:
        assert line["optim/grad_norm"] > 0
        assert line["policy/logprob_gap_mean"] < 3e-6
    assert lines[-1]["eval/chain/demonstration_loss"] > 0
