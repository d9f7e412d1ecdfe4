"""What is skipped, continued, and made anew: decided from run folders alone."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from hpt_ray.config.load import dump_config
from hpt_ray.config.schema import Config
from hpt_ray.tools.suite.matrix import RunSpec, flat
from hpt_ray.tools.suite.state import Action, differences, state_of


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    config = Config()
    config.run.dir, config.run.name, config.model.path = str(tmp_path), "t.hpt.s1", "mini:t"
    config.evaluation.sets = {"chain": "mini:test/chain"}
    return RunSpec("t.hpt.s1", "t", "hpt", 1, config)


def write_run(spec: RunSpec, config: Config, *, time: str, finished: bool, checkpoint: bool = False) -> Path:
    root = Path(spec.config.run.dir) / f"{spec.id}-20250101-{time}"
    root.mkdir()
    dump_config(config, root / "config.yaml")
    if finished:
        (root / "summary.json").write_text(json.dumps({"steps": 1}), encoding="utf-8")
    if checkpoint:
        (root / "checkpoints" / "step-000005").mkdir(parents=True)
    return root


def test_nothing_there_is_run(spec: RunSpec) -> None:
    assert state_of(spec).action is Action.RUN


def test_a_finished_run_of_the_same_configuration_is_done(spec: RunSpec) -> None:
    root = write_run(spec, spec.config, time="000000", finished=True)
    assert (state_of(spec).action, state_of(spec).root) == (Action.DONE, root)


def test_a_run_that_was_cut_off_goes_on_only_from_a_checkpoint(spec: RunSpec) -> None:
    write_run(spec, spec.config, time="000000", finished=False)
    assert state_of(spec).action is Action.RUN
    root = write_run(spec, spec.config, time="000001", finished=False, checkpoint=True)
    assert (state_of(spec).action, state_of(spec).root) == (Action.CONTINUE, root)


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_configuration_is_said_and_never_used(spec: RunSpec, finished: bool) -> None:
    before = copy.deepcopy(spec.config)
    before.learner.learning_rate = 1e-3
    write_run(spec, before, time="000000", finished=finished, checkpoint=True)
    state = state_of(spec)
    assert (state.action, state.root) == (Action.CHANGED, None)
    assert state.differences == ["learner.learning_rate: 0.001 → 5e-06"]


def test_a_set_that_was_added_is_a_change(spec: RunSpec) -> None:
    before = copy.deepcopy(spec.config)
    before.evaluation.sets = {}
    write_run(spec, before, time="000000", finished=True)
    assert state_of(spec).action is Action.CHANGED


def test_where_a_run_lies_and_what_it_shows_is_no_change(spec: RunSpec) -> None:
    before = copy.deepcopy(spec.config)
    before.run.dir, before.resume, before.observe.rollouts_every = "elsewhere", "auto", 7
    before.cluster.placement_timeout_s = before.learner.timeout_s = 1.0
    write_run(spec, before, time="000000", finished=True)
    assert state_of(spec).action is Action.DONE


def test_a_key_that_did_not_exist_yet_had_its_default(spec: RunSpec) -> None:
    root = write_run(spec, spec.config, time="000000", finished=True)
    content = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
    del content["algorithm"]["kl_coef"]
    (root / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert state_of(spec).action is Action.DONE


def test_the_newest_folder_counts(spec: RunSpec) -> None:
    changed = copy.deepcopy(spec.config)
    changed.run.steps = 7
    write_run(spec, changed, time="000000", finished=True)
    root = write_run(spec, spec.config, time="000100", finished=True)
    assert state_of(spec).root == root


@pytest.mark.parametrize("text", ["", "{", "[1"])
def test_what_cannot_be_read_is_not_used(spec: RunSpec, text: str) -> None:
    root = write_run(spec, spec.config, time="000000", finished=True)
    (root / "config.yaml").write_text(text, encoding="utf-8")
    assert state_of(spec).action is Action.CHANGED
    (root / "summary.json").write_text(text, encoding="utf-8")
    assert state_of(spec).action is Action.RUN


def test_runs_with_names_that_begin_alike_are_kept_apart(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "t.hpt.s1-extra-20250101-000000").mkdir()
    (tmp_path / "t.hpt.s10-20250101-000000").mkdir()
    assert state_of(spec).action is Action.RUN


def test_differences_name_old_and_new() -> None:
    before, now = Config(), Config()
    now.selection.gamma = 0.25
    assert differences(flat(before), flat(now)) == ["selection.gamma: 0.0 → 0.25"]
