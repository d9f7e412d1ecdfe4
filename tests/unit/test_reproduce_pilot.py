"""No line of the paper's recipes is untried when somebody pays for them; a wrong one is told in a sentence."""

import json
from pathlib import Path

import pytest

from hpt_ray.evaluation.plan import load_evaluation
from hpt_ray.tools.suite.__main__ import first_sentence, main
from hpt_ray.tools.suite.matrix import flat
from hpt_ray.tools.suite.pilot import Pilot
from hpt_ray.tools.suite.runner import look
from hpt_ray.tools.suite.suite import load_suite

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER = CONFIGS / "paper" / "suite.yaml"
ONE_MODEL = [
    *("matrix.models=[qwen2.5-math-1.5b]", "matrix.methods=[hpt, sft_then_grpo]", "pass_at_k.methods=[hpt]")
]
AS_PAPER = {name: {"recipe": f"{name}_as_paper.yaml"} for name in load_suite(PAPER).models}


def pilot_of(out: Path, suite: Path, words: list[str], only: list[str]) -> Pilot:
    out.mkdir(exist_ok=True)
    return Pilot(look(load_suite(suite, [f"out={out}", *words]), only))


@pytest.mark.parametrize(
    ("suite", "words", "only"),
    [
        (PAPER, [], []),
        (PAPER, ["matrix.methods=[hpt]", "pass_at_k.methods=[hpt]", f"models={json.dumps(AS_PAPER)}"], []),
        (CONFIGS / "paper" / "figures_3_4.yaml", [], []),
        (CONFIGS / "mini" / "small.yaml", [], ["t.hpt.s1"]),
    ],
    ids=["as code", "as paper", "Figures 3 and 4", "small task"],
)
def test_every_row_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: Path, words: list[str], only: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where none of the paper's data is
    monkeypatch.setenv("HPT_RAY_CACHE", str(tmp_path / "cache"))
    pilot = pilot_of(tmp_path / "out", suite, words, only)
    for row in pilot.rows:
        pilot.check(row)
    pairs = [row.pair for row in pilot.rows]
    assert pairs == [*load_suite(suite, words).pairs()] or only
    assert pilot.results == {row.id: "" for row in pilot.rows}
    assert any("data/openr1.parquet is not here" in line for line in pilot.absent) == (suite == PAPER)
    for file in (tmp_path / "out" / "pilot" / "configs").glob("final *.base.yaml"):
        asked = load_evaluation(str(file), [])
        assert (asked.reward.function, asked.temperature) == ("math:lenient", 0.6)
        assert (asked.rollout.num_gpus, asked.max_response_tokens) == (0, 64)


def test_only_what_this_machine_cannot_have_is_replaced(tmp_path: Path) -> None:
    pilot = pilot_of(tmp_path, PAPER, ONE_MODEL, ["*.sft_then_grpo.s1"])
    (row,) = pilot.rows
    small = pilot.small(row.config)
    before, after = flat(row.config), flat(small)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        *("prompts_per_step", "max_tokens_per_micro_batch", "phases", "run.steps", "run.dir", "model.path"),
        *("data.train", "data.max_response_tokens", "cluster.colocate", "cluster.gpu_memory_gib"),
        *("rollout.num_workers", "rollout.num_gpus", "rollout.num_cpus", "rollout.kv_cache_gib"),
        *(
            "learner.num_ranks",
            "learner.num_gpus",
            "learner.num_cpus",
            "reward.num_processes",
            "reward.num_cpus",
        ),
        *("critic.num_cpus", "reference.num_cpus", "checkpoint.every"),
        *("evaluation.every", "evaluation.samples", "evaluation.max_response_tokens"),
        *("evaluation.sets.aime24", "evaluation.sets.amc", "evaluation.sets.math500"),
    }
    assert [(phase["steps"], phase["prompts_per_step"]) for phase in small.phases] == [(2, 4), (2, 4)]
    assert small.phases[0]["learner"] == row.config.phases[0]["learner"] | {"warmup_steps": 1}
    assert small.phases[1]["algorithm"] == row.config.phases[1]["algorithm"]


def test_a_row_that_cannot_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "methods.hpt.config={data: {template: no place for it}}"
    assert main([str(PAPER), "--pilot", "--dry-run", *ONE_MODEL, f"out={tmp_path}", wrong]) == 1
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    table = {words[0]: words[1].strip() for words in lines if len(words) == 2}
    assert table["qwen2.5-math-1.5b.sft_then_grpo.s1"] == "passed"
    assert table["qwen2.5-math-1.5b.hpt.s1"].startswith("data.template is 'no place for it'")
    assert "no place for it" in (tmp_path / "pilot" / "logs" / "qwen2.5-math-1.5b.hpt.s1.log").read_text()


def test_the_first_sentence_of_an_error() -> None:
    assert first_sentence("`a.b` is 3.5, e.g. too much. Lower it. Now.") == "`a.b` is 3.5, e.g. too much."
