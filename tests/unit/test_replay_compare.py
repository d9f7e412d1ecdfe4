"""Replay without actors: where it starts, what is compared and what is said about it."""

import math
from pathlib import Path

import pytest

from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.cli.replay import Difference, compare, parse, result
from hpt_ray.config.load import dump_config, load_config
from hpt_ray.errors import UserError
from hpt_ray.observe.rollout_dump import dump_of, write_rollouts
from hpt_ray.observe.run_folder import RunFolder

TINY = Path(__file__).parents[1] / "cluster" / "tiny.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Six steps, every second one dumped, checkpoints of steps 3 and 5."""
    folder = RunFolder.create(tmp_path, "demo")
    dump_config(load_config(TINY, ["observe.rollouts_every=2"]), folder.config)
    store = CheckpointStore(folder.checkpoints, keep=0)
    for step in range(7):  # 0: the evaluation before training
        folder.append_metrics({"step": step})
        if step in (2, 4, 6):
            write_rollouts(folder.rollouts, step, [])
        if step in (3, 5):
            store.begin(step)
            store.commit(step, RunState(step, step, {}).to_json())
    return folder


def test_a_replay_starts_at_the_newest_whole_checkpoint_before_the_step(run: RunFolder) -> None:
    plan = parse([str(run.root), "step=6", "tolerance=1e-3", "cluster.address=local"])
    assert (plan.start, list(plan.lines), plan.tolerance) == (run.checkpoints / "step-000005", [6], 1e-3)
    for step in (4, 5):
        write_rollouts(run.rollouts, step, [])
    (run.checkpoints / "step-000005" / "state.json").unlink()
    plan = parse([str(run.root), "step=6"])
    assert (plan.start, list(plan.lines)) == (run.checkpoints / "step-000003", [4, 5, 6])
    write_rollouts(run.rollouts, 1, [])
    plan = parse([str(run.root), "step=2"])
    assert (plan.start, list(plan.lines)) == (None, [1, 2])


def test_a_missing_dump_is_named_with_the_steps_that_can_be_replayed(run: RunFolder) -> None:
    with pytest.raises(UserError) as caught:
        parse([str(run.root), "step=2"])
    assert str(caught.value) == (
        f"{dump_of(run.rollouts, 1)} is missing. A replay of step 2 starts from the initial model and needs "
        "the rollouts of every step from 1 on; this run has observe.rollouts_every=2. Steps that can be "
        "replayed: 4, 6."
    )
    with pytest.raises(UserError, match=r"step-000005.parquet is missing.*the checkpoint of step 3"):
        parse([str(run.root), "step=5"])
    for step in (2, 4, 6):
        dump_of(run.rollouts, step).unlink()
    with pytest.raises(UserError, match=r"To replay a run, make it with observe\.rollouts_every=1"):
        parse([str(run.root), "step=4"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step=9"], "has no step 9: it has steps 1 to 6"),
        (["step=0"], "has no step 0: it has steps 1 to 6"),
        (["step=two"], "Say which step: step=K"),
        (["tolerance=1e-3"], "Say which step: step=K"),
        (["step=2", "tolerance=x"], "tolerance=T is a number"),
        (["step=4", "learner.lr=1"], "unknown key `learner.lr`"),
    ],
)
def test_what_the_user_must_change_is_said(run: RunFolder, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([str(run.root), *words])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        parse([str(tmp_path), "step=1"])


def test_norms_are_compared_by_their_size_and_everything_else_by_one() -> None:
    assert Difference("optim/grad_norm", 1e-6, 1.1e-6).relative == pytest.approx(1 / 11)
    assert Difference("critic/grad_norm", 0.0, 0.0).relative == 0
    assert Difference("policy/logprob_gap_max", 1e-7, 3e-7).relative == pytest.approx(2e-7)
    assert Difference("critic/value_loss", 200.0, 100.0).relative == 0.5


def test_a_number_that_one_side_lacks_is_a_difference() -> None:
    recorded = {"optim/grad_norm": None, "policy/entropy": 1.0, "time/step_s": 3.0}
    replayed = {"optim/grad_norm": math.nan, "policy/entropy": None, "time/learner_s": 4.0, "loss/a": 0.5}
    differences = {d.name: d.relative for d in compare(recorded, replayed)}
    assert differences == {"optim/grad_norm": 0.0, "policy/entropy": math.inf, "loss/a": math.inf}


@pytest.mark.parametrize(
    ("replayed", "words"),
    [
        (2.0, "the same in every digit"),
        (2.0 + 6e-8, "the same to 7 digits"),
        (2.0 + 2e-6, "the same to 6 digits"),
        (2.1, "not the same: optim/grad_norm differs by 4.8e-02 (tolerance 1e-05)"),
        (None, "not the same: optim/grad_norm differs by inf (tolerance 1e-05)"),
    ],
)
def test_a_result_in_words(replayed: float | None, words: str) -> None:
    differences = [Difference("policy/entropy", 1.0, 1.0), Difference("optim/grad_norm", 2.0, replayed)]
    assert result(differences, 1e-5) == words
