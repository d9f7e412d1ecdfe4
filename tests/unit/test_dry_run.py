"""What a dry run finds before anything starts: each of these would stop, or spoil, a real start minutes later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpt_ray.cli.first_look import without_file
from hpt_ray.cluster.runtime import address_to_join
from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.data.mini.model import create_model
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.errors import UserError
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.tools.plan import find_shape, plan_run, seen_at_start, survey

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def configured(*words: str) -> Config:
    config = load_config(str(QUICKSTART), ["model.path=mini:t-fresh", "cluster.address=local", *words])
    check_config(config)
    return config


def left(*words: str) -> list[str]:
    """What a dry run could not check."""
    config = configured(*words)
    found, absent = survey(config)
    plan_run(config, found)
    return absent


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        left(*words)
    return str(caught.value)


def test_the_quickstart_passes_whole() -> None:
    config = configured()
    found, absent = survey(config)
    assert found is not None
    assert (absent, seen_at_start(config)) == ([], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run.name=a/b",), "`run.name` is 'a/b'"),
        (("run.name=",), "`run.name` is ''"),
        (("run.name=..",), "`run.name` is '..'"),
        (("run.name=" + "n" * 300,), "300 characters long"),
        (("run.dir=~/runs",), "write the whole path"),
        (("group_size=1",), "compares the rollouts of a prompt with each other"),
        (("group_size=1", "algorithm.name=grpo"), "algorithm.name=grpo compares"),
        (("group_size=1", "algorithm.name=rloo"), "algorithm.name=rloo compares"),
        (("rollout.num_workers=1000",), "this machine has too little room: 1001 CPU are asked for"),
        (("learner.num_gpus=1", "rollout.num_gpus=1", "learner.num_ranks=900"), "901 GPU are asked for"),
        (("cluster.pools={rollout: fast}",), "no node has the resource `fast`"),
        (("resume=runs/mine-20260101-000000",), "resume=runs/mine-20260101-000000: no such folder."),
        (("checkpoint.mirror=s4://bucket",), "checkpoint.mirror=s4://bucket: "),
        (("data.max_response_tokens=4000", "max_tokens_per_micro_batch=8192"), "4040 tokens together"),
        (("evaluation.max_response_tokens=4000",), "evaluation.max_response_tokens 4000"),
        (
            ("rollout.engine={max_model_len: 90}",),
            "lower `data.max_prompt_tokens` or `evaluation.max_response_tokens`",
        ),
    ],
)
def test_what_the_dry_run_finds(words: tuple[str, ...], message: str) -> None:
    assert message in refusal(*words)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = replace(TRACKERS["wandb"], package="no_such_package")
    monkeypatch.setitem(TRACKERS, "wandb", kind)
    assert "no_such_package is not installed: install the extra" in refusal("observe.trackers=[wandb]")


def test_an_algorithm_without_a_group_takes_one_rollout() -> None:
    assert left("group_size=1", "algorithm.name=reinforce", "selection.gamma=0") == []


def test_positions_and_both_mends_are_named() -> None:
    said = refusal("data.max_response_tokens=4000", "max_tokens_per_micro_batch=8192")
    shape = find_shape(configured().model, "mini:t-fresh")
    assert shape is not None
    assert (
        f"has {shape.positions} positions: lower data.max_response_tokens to {(shape.positions or 0) - 40}"
        in said
    )
    longer = "model.config_overrides.max_position_embeddings=4040"
    assert longer in said
    assert left("data.max_response_tokens=4000", "max_tokens_per_micro_batch=8192", longer) == []


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, 256),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 1024),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            256,
        ),
    ],
)
def test_positions_are_those_that_an_engine_starts_with(rope: dict, positions: int) -> None:
    words = f"model.config_overrides={{max_position_embeddings: 256, rope_parameters: {json.dumps(rope)}}}"
    shape = find_shape(configured(words).model, "mini:t-fresh")
    assert shape is not None
    assert shape.positions == positions


def test_a_run_folder_is_resumed_and_a_slip_names_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "quickstart-20260101-000000"
    (run / "checkpoints" / "step-000012").mkdir(parents=True)
    (run / "config.yaml").write_text("run: {}\n")
    assert left(f"resume={run}") == []
    assert f"Did you mean {run}?" in refusal(f"resume={run}0")
    assert f"Did you mean {run}?" in refusal(f"resume={run}/checkpoints/step-000012")
    assert "not a run folder (no config.yaml in it)" in refusal(f"resume={tmp_path}/runs")


def test_a_file_where_run_folders_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is a file" in refusal(f"run.dir={tmp_path}/file/runs")


def test_a_path_of_another_machine_is_named_and_not_refused() -> None:
    (line,) = left("run.dir=/nowhere/runs")
    assert line.startswith("run.dir: nothing of /nowhere/runs is here")


def test_a_file_that_is_not_here_names_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    assert left("data.train=[trian.jsonl]") == [
        "data.train: trian.jsonl is not here (beside it: train.jsonl)"
    ]


def test_a_run_for_gpus_that_no_machine_here_has_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    if address_to_join("auto") is not None:
        pytest.skip("a Ray cluster runs on this machine, and the run would join it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (line,) = left(
        "cluster.address=auto", "learner.num_gpus=1", "rollout.num_gpus=1", "weight_sync.backend=nccl"
    )
    assert line.startswith("room: it will need a cluster")


def test_what_only_a_start_shows_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    create_model("t", seed=0).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    config = configured(f"model.path={model}", f"checkpoint.mirror={tmp_path}/mirror")
    found, absent = survey(config)
    assert found is not None
    assert absent == []
    assert seen_at_start(config) == [
        "whether the weights are those of config.json",
        f"whether {tmp_path}/mirror can be read and written",
    ]


def test_a_model_of_ones_own_does_not_get_the_settings_of_the_small_task() -> None:
    assert Path(str(without_file(["run.steps=3", "model.path=mini:xs"]))).name == QUICKSTART.name
    assert without_file(["run.steps=3", "model.path=./mine"]) is None
