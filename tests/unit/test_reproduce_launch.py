"""What a job is given to read, and when a running one does just what is wanted."""

import copy
from pathlib import Path

import pytest

from hpt_ray.config.load import load_as
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError
from hpt_ray.evaluation.schema import EvaluateConfig
from hpt_ray.tools.suite.matrix import reported_runs, untuned
from hpt_ray.tools.suite.passes import evaluations_of
from hpt_ray.tools.suite.ray_jobs import RayLauncher
from hpt_ray.tools.suite.state import fingerprint
from hpt_ray.tools.suite.suite import Suite, load_suite

ROOT = Path(__file__).resolve().parents[2]
SUITE = f"""
out: OUT
recipe: {ROOT}/tests/cluster/tiny.yaml
models: {{t: {{title: small, config: {{model: {{path: "mini:t-fresh"}}}}}}}}
methods: {{hpt: {{title: HPT, config: {{algorithm: {{name: hpt}}}}}}}}
matrix: {{seeds: [1]}}
sets: {{test: {{chain: "mini:test/chain"}}, in_distribution: [chain]}}
pass_at_k: {{config: asked/pass.yaml, benchmarks: [mini-chain], samples: 2}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    here = tmp_path / "here"
    (here / "asked").mkdir(parents=True)
    (here / "asked" / "pass.yaml").write_text("defaults: [../shared.yaml]\nseed: 3\n", encoding="utf-8")
    (here / "shared.yaml").write_text("seed: 2\nreward: {require_finished: false}\n", encoding="utf-8")
    (here / "suite.yaml").write_text(SUITE.replace("OUT", str(tmp_path / "out")), encoding="utf-8")
    return load_suite(here / "suite.yaml")


def test_evaluations_read_copies_in_the_output_folder(suite: Suite) -> None:
    runs = reported_runs(suite, untuned(suite))
    evaluations = evaluations_of(suite, runs, {runs[0].id: suite.out / "runs" / "one"})
    assert [evaluation.method for evaluation in evaluations] == ["base", "hpt"]
    for evaluation in evaluations:
        evaluation.write_configuration()
        words = list(evaluation.job(suite.out / "logs").words)
        path = Path(words[words.index("--config") + 1])
        assert path.is_relative_to(suite.out)
        assert str(suite.path.parent) not in " ".join(words)
        config = load_as(EvaluateConfig, path, ["model=x"])
        assert (config.seed, config.reward.require_finished) == (3, False)
    for written in (suite.out / "configs").iterdir():
        assert str(suite.path.parent) not in written.read_text(encoding="utf-8")


def test_a_mistake_in_an_evaluations_configuration_is_found_before_the_first_run(suite: Suite) -> None:
    (suite.path.parent / "shared.yaml").write_text("sed: 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"shared.yaml: unknown key `sed`. Did you mean `seed`"):
        load_suite(suite.path)


def test_a_running_job_is_ours_unless_what_it_learns_or_where_it_writes_differs() -> None:
    config = Config()
    other = copy.deepcopy(config)
    other.observe.rollouts_every, other.cluster.placement_timeout_s = 7, 1.0
    assert fingerprint(other) == fingerprint(config)
    for change in ("learning_rate", "dir"):
        other = copy.deepcopy(config)
        if change == "dir":
            other.run.dir = "elsewhere"
        else:
            other.learner.learning_rate = 1.0
        assert fingerprint(other) != fingerprint(config)


def test_a_working_dir_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        RayLauncher(None, str(tmp_path / "missing"))
