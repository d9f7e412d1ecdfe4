"""The run's state: what was saved is what is read, by this version and by the next."""

import json
from pathlib import Path

import pytest

from hpt_ray.algorithms.gates import Attempt
from hpt_ray.checkpoint.manifest import CheckpointDamaged
from hpt_ray.checkpoint.state import FORMAT, RunState, read_state
from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.errors import UserError

SAMPLER = {"epoch": 1, "position": 7, "seed": 0, "num_prompts": 32, "shuffle": True}
STATE = RunState(
    step=12,
    version=13,
    sampler=SAMPLER,
    best=(0.1 + 0.2, 8),
    failures={"verifier/timeout": 3},
    history={"mini/1": 17.3, "mini/2": 1e-9},
    attempts={"mini/1": [Attempt(0, 8), Attempt(3, 7)]},
    skipped_in_a_row=2,
    owes_evaluation=True,
    wall_s=12.5,
)


def saved(tmp_path: Path, content: dict) -> Path:
    store = CheckpointStore(tmp_path, keep=0)
    store.begin(1)
    return store.commit(1, content).path


@pytest.mark.parametrize("state", [STATE, RunState(0, 0, SAMPLER)])
def test_a_state_is_read_as_it_was_saved(tmp_path: Path, state: RunState) -> None:
    assert read_state(saved(tmp_path, state.to_json())) == state


def test_the_form_of_a_saved_state_changes_only_with_its_number() -> None:
    assert json.loads(json.dumps(STATE.to_json())) == {
        "format": 5, "step": 12, "version": 13, "sampler": SAMPLER, "best": [0.30000000000000004, 8],
        "failures": {"verifier/timeout": 3}, "history": {"mini/1": 17.3, "mini/2": 1e-9},
        "attempts": {"mini/1": [[0, 8], [3, 7]]}, "skipped_in_a_row": 2, "owes_evaluation": True,
        "wall_s": 12.5,
    }  # fmt: skip


def test_a_state_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    first = {"step": 2, "version": 2, "sampler": SAMPLER, "best": None, "failures": {"rollout/lost": 1}}
    assert read_state(saved(tmp_path, first)) == RunState(2, 2, SAMPLER, failures={"rollout/lost": 1})


def test_a_newer_format_is_refused_and_the_checkpoint_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, STATE.to_json() | {"format": FORMAT + 1})
    with pytest.raises(UserError, match=rf"step-000001: state\.json has format {FORMAT + 1}, .* newer one"):
        read_state(path)


@pytest.mark.parametrize("content", [{}, {"step": 1, "version": 1}, {"format": "x"}])
def test_what_is_no_state_is_damage(tmp_path: Path, content: dict) -> None:
    with pytest.raises(CheckpointDamaged, match=r"state\.json is no state of a run"):
        read_state(saved(tmp_path, content))


def test_a_prompt_may_be_called_as_a_field_once_was(tmp_path):
    state = RunState(1, 1, SAMPLER, history={"visits": 3.0}, attempts={"solved": [Attempt(1, 4)]})
    assert read_state(saved(tmp_path, state.to_json())) == state
