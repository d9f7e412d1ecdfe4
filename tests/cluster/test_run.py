"""The whole loop as a person runs it: real Ray, vLLM and DeepSpeed, an untrained model, a few small steps.

The run that most tests look at is made once: 2 rollout workers, 2 learner ranks on ZeRO-3, 4 steps, graded
by the parity of the answer's length, so that some prompts train on rollouts and some on demonstrations.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command import LIMIT_S, ROOT, TINY, child_environment, run_main, write_reward_function
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.observe.metrics import missing_metrics, unknown_metrics
from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

STEPS = 4
# The keys that every line of metrics.jsonl is promised to have.
PROMISED = (
    "step", "weights/version", "reward/mean", "selection/demo_prompt_ratio", "selection/demo_sample_ratio",
    "policy/entropy", "policy/logprob_gap_mean", "policy/logprob_gap_max", "rollout/length_mean",
    "rollout/truncated_ratio", "rollout/tokens_per_s", "learner/tokens_per_s", "optim/grad_norm", "optim/lr",
    "time/step_s", "time/rollout_s", "time/learner_s", "time/sync_s",
)  # fmt: skip

GENERATE = """
import sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], max_model_len=64, enforce_eager=True, dtype="float32", block_size=32,
              kv_cache_memory_bytes=1 << 26, skip_tokenizer_init=True)
    prompt = {"prompt_token_ids": [1, 4, 5, 6]}
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    print("TOKENS", *llm.generate(prompt, params)[0].outputs[0].token_ids)
"""


def succeed(*words: str) -> str:
    finished = run_main([*TINY, *words])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """The configuration of the run that most tests look at."""
    return [
        "run.name=full",
        f"run.steps={STEPS}",
        f"reward.function={write_reward_function(tmp_path_factory.mktemp('reward_function'))}",
        "rollout.num_workers=2",
        "learner.num_ranks=2",
        "learner.zero_stage=3",
        "checkpoint.every=2",
        "checkpoint.keep=0",
        "evaluation.every=2",
        "evaluation.before_training=true",
        "evaluation.sets={chain: mini:validation/chain}",
        "observe.samples_every=2",
    ]


@pytest.fixture(scope="module")
def printed_and_folder(words, tmp_path_factory) -> tuple[str, RunFolder]:
    runs = tmp_path_factory.mktemp("runs")
    printed = succeed(*words, f"run.dir={runs}")
    return printed, RunFolder((runs / "latest").resolve())


@pytest.fixture(scope="module")
def full(printed_and_folder) -> RunFolder:
    return printed_and_folder[1]


@pytest.fixture(scope="module")
def export(full) -> Path:
    return full.checkpoints / f"step-{STEPS:06d}" / "hf"


def prompt_history_of(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.root / "prompt_history.jsonl").read_text().splitlines()]


def prompts_by_step(folder: RunFolder) -> dict[int, list[str]]:
    """Within a step, the order is that in which answers came in."""
    attempts = sorted((attempt["step"], attempt["prompt_id"]) for attempt in prompt_history_of(folder))
    return {step: [name for other, name in attempts if other == step] for step, _ in attempts}


# -- the run folder --------------------------------------------------------------------------------


def test_each_line_of_metrics_has_every_promised_key(full):
    lines = full.read_metrics()
    assert [line["step"] for line in lines] == list(range(STEPS + 1))  # 0: the evaluation before training
    for line in lines:
        assert not set(PROMISED) - set(line)
        assert not missing_metrics(line)
        assert not unknown_metrics(line)
        assert ("eval/chain/mean" in line) == (line["step"] % 2 == 0)


def test_values_of_a_step_are_there_and_finite(full):
    lines = full.read_metrics()[1:]
    for line in lines:
        assert all(math.isfinite(line[name]) for name in PROMISED), line
        assert line["observe/non_finite"] == 0
        assert line["optim/grad_norm"] > 0
    assert [line["weights/version"] for line in lines] == [1, 2, 3, 4]


def test_both_streams_were_trained(full):
    """Otherwise the other tests of this run would say little."""
    assert any(0 < line["selection/demo_prompt_ratio"] < 1 for line in full.read_metrics()[1:])


def test_sampler_and_learner_agree_after_every_sync(full):
    assert all(line["policy/logprob_gap_max"] < 1e-3 for line in full.read_metrics()[1:])


def test_summary_holds_evaluations_times_and_counts(full):
    summary = json.loads(full.summary.read_text())
    assert summary["name"] == "full"
    assert summary["steps"] == STEPS
    evaluations = summary["evaluations"]["chain"]
    assert [evaluations[name]["step"] for name in ("first", "last")] == [0, STEPS]
    assert evaluations["best"]["mean"] == max(line.get("eval/chain/mean", 0) for line in full.read_metrics())
    assert summary["wall_s"] >= summary["training_s"] > 0
    assert summary["dropped_rows"] == {}
    assert summary["failures"] == {}
    assert (full.root / summary["checkpoint"]).is_dir()


def test_the_history_has_one_line_an_attempt(full):
    attempts = prompt_history_of(full)
    assert [attempt["step"] for attempt in attempts] == [step for step in (1, 2, 3, 4) for _ in range(8)]
    assert len({attempt["prompt_id"] for attempt in attempts}) == 32  # no prompt comes twice within an epoch
    for attempt in attempts:
        assert attempt["rollouts"] == 4
        assert attempt["demo_weight"] == (attempt["correct"] == 0)
        assert attempt["rollout_weight"] == (attempt["correct"] > 0)


def test_rollouts_are_dumped_with_results(full):
    for step in range(1, STEPS + 1):
        rows = pq.read_table(full.rollouts / f"step-{step:06d}.parquet").to_pylist()
        assert len(rows) == 8 * 4
        assert {row["weight_version"] for row in rows} == {step - 1}
        assert all(len(row["token_ids"]) == len(row["logprobs"]) for row in rows)
        scores = [row["score"] for row in rows]
        line = full.read_metrics()[step]
        assert sum(scores) / len(scores) == pytest.approx(line["reward/mean"])


def test_evaluations_keep_their_responses(full):
    lines = {line["step"]: line for line in full.read_metrics() if line.get("eval/chain/mean") is not None}
    assert {path.name for path in full.rollouts.glob("eval-*")} == {
        f"eval-{step:06d}.parquet" for step in lines
    }
    for step, line in lines.items():
        rows = pq.read_table(full.rollouts / f"eval-{step:06d}.parquet").to_pylist()
        correct = [row["outcome"] == "correct" for row in rows if row["request_id"].startswith("chain#")]
        assert sum(correct) / len(correct) == pytest.approx(line["eval/chain/mean"])


def test_tensorboard_has_the_same_curves(full):
    events = EventAccumulator(str(full.tensorboard))
    events.Reload()
    curve = {event.step: event.value for event in events.Scalars("optim/grad_norm")}
    lines = full.read_metrics()[1:]
    assert curve == pytest.approx({line["step"]: line["optim/grad_norm"] for line in lines}, rel=1e-6)


def test_actors_write_to_files_and_a_person_sees_little(printed_and_folder):
    printed, folder = printed_and_folder
    names = {path.name for path in folder.logs.iterdir()}
    assert {"rollout-0.log", "rollout-1.log", "learner-0.log", "learner-1.log"} <= names
    assert "prompts_per_step" in printed  # the sizes at the start
    assert "Sampled responses, step 2" in printed
    assert f"Done: {STEPS} steps" in printed
    assert "WARNING" not in printed
    assert len(printed.splitlines()) < 150  # the plan, the data card and two tables of samples among them


# -- the checkpoint --------------------------------------------------------------------------------


def test_checkpoints_are_whole(full):
    store = CheckpointStore(full.checkpoints, keep=0)
    assert store.steps() == [2, 4]
    assert store.latest(checksums=True).rejected == {}


def test_export_is_the_trained_model_for_transformers_and_vllm(export):
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    assert load_tokenizer(str(export)).eos_token_id == model.config.eos_token_id
    expected = model.generate(
        torch.tensor([[1, 4, 5, 6]]), do_sample=False, max_new_tokens=8, min_new_tokens=8, eos_token_id=-1
    )
    finished = subprocess.run(
        [sys.executable, "-c", GENERATE, str(export)],
        env=child_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", TORCHDYNAMO_DISABLE="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert finished.returncode == 0, finished.stderr
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("TOKENS"))
    assert [int(word) for word in line.split()[1:]] == expected[0, 4:].tolist()


# -- other runs ------------------------------------------------------------------------------------


def test_resume_goes_on_as_if_nothing_had_happened(full, words, tmp_path):
    """A run that was killed after step 3: a checkpoint of step 2, and lines of a step that is done again."""
    killed = RunFolder(tmp_path / full.root.name)
    shutil.copytree(full.root, killed.root)
    shutil.rmtree(killed.checkpoints / "step-000004")
    kept = [line for line in killed.read_metrics() if line["step"] <= 3]
    killed.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    killed.summary.unlink()

    printed = succeed(*words, f"run.dir={tmp_path}", "resume=auto")

    assert "Continuing from step 2" in printed
    assert (tmp_path / "latest").resolve() == killed.root.resolve()
    lines, expected = killed.read_metrics(), full.read_metrics()
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[:3] == expected[:3]
    assert prompts_by_step(killed) == prompts_by_step(full)
    for name in ("reward/mean", "selection/demo_prompt_ratio", "optim/lr", "weights/version"):
        assert lines[3][name] == expected[3][name], name
    assert lines[3]["optim/grad_norm"] == pytest.approx(expected[3]["optim/grad_norm"], rel=1e-4)
    assert json.loads(killed.summary.read_text())["steps"] == STEPS


def test_supervised_run_starts_no_rollout_worker(tmp_path):
    succeed("algorithm.name=sft", "group_size=0", "run.steps=2", f"run.dir={tmp_path}")
    folder = RunFolder(tmp_path / "latest")
    assert [path.name for path in folder.logs.iterdir()] == ["learner-0.log"]
    for line in folder.read_metrics():
        assert not set(PROMISED) - set(line)
        assert line["selection/demo_prompt_ratio"] == line["selection/demo_sample_ratio"] == 1
        assert line["reward/mean"] is None
        assert line["optim/grad_norm"] > 0


def test_two_updates_a_step_with_a_reference_policy(tmp_path):
    """GRPO: every prompt trains on its rollouts, the second update off-policy; KL to the frozen policy."""
    succeed(
        "algorithm.name=grpo",
        "algorithm.kl_coef=0.1",
        "updates_per_step=2",
        "run.steps=2",
        "rollout.num_workers=1",
        f"reward.function={write_reward_function(tmp_path)}",
        f"run.dir={tmp_path}/runs",
    )
    folder = RunFolder(tmp_path / "runs" / "latest")
    assert (folder.logs / "reference-0.log").is_file()
    for line in folder.read_metrics():
        assert line["selection/demo_prompt_ratio"] == 0
        assert (
            line["policy/logprob_gap_max"] < 1e-3
        )  # of the first update: the second is off-policy by design
        assert line["optim/grad_norm"] > 0


def test_gsm8k_from_published_files_to_a_falling_loss(tmp_path):
    source = ROOT.parent / "shared" / "data" / "gsm8k"
    if not source.is_dir():
        pytest.skip(f"the published files of GSM8K are not in {source}")
    short = tmp_path / "source"
    short.mkdir()
    for split in ("train", "test"):
        lines = (source / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (short / f"{split}.jsonl").write_text("".join(lines[:600]))
    out = tmp_path / "result.json"
    command = [
        sys.executable,
        "benchmarks/gsm8k_tiny.py",
        f"--source={short}",
        f"--out={out}",
        "--held-out=64",
    ]
    command += ["run.steps=4", "evaluation.every=2", "prompts_per_step=16", "cluster.address=local"]
    finished = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(out.read_text())
    assert report["result"]["falls_steadily"]
    assert report["result"]["every_row_accounted_for"]
    assert report["rows"]["train"]["rows"] == 600
    assert len(report["eval_demonstration_loss"]) == 3
    assert str(tmp_path) not in out.read_text()
