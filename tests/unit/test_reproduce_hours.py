"""What a suite on GPUs will cost, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpt_ray.tools.plan.paper_table import plan_of
from hpt_ray.tools.plan.show import two_digits
from hpt_ray.tools.suite.__main__ import main
from hpt_ray.tools.suite.hours import Row, makespan, rows_of
from hpt_ray.tools.suite.runner import look
from hpt_ray.tools.suite.suite import load_suite

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
WORDS = ["matrix.methods=[hpt,sft]", "matrix.models=[qwen2.5-math-1.5b]", "pass_at_k.methods=[hpt,sft]"]


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    found = rows_of(look(load_suite(PAPER / "suite.yaml", WORDS)))
    return {row.pair[1] or "all": row for row in found}


def test_a_job_starts_in_the_slot_that_is_free_first() -> None:
    assert makespan([3, 2, 2], 1) == 7
    assert makespan([3, 2, 2], 2) == 4
    assert makespan([3, 2, 2], 8) == 3


def test_runs_cost_what_their_plan_says(rows: dict[str, Row]) -> None:
    plan = plan_of("qwen2.5-math-1.5b")
    assert plan.costs is not None
    assert [rows["hpt"].gpu_hours(i, "runs") for i in range(3)] == pytest.approx(
        [3 * cost.gpu_hours for cost in plan.costs]
    )
    assert (rows["hpt"].count("runs"), rows["hpt"].count("evaluations")) == (3, 3 + 1)


def test_evaluations_are_counted_prompt_by_prompt(rows: dict[str, Row]) -> None:
    parameters, layers, width = 1_543_714_304, 28, 12 * 128
    prompt, response = 0.15 * 1024, 0.3 * 8192

    def read(tokens: float, length: float) -> float:
        return tokens * (2 * parameters + 2 * layers * width * length)

    final = (30 + 30 + 83) * 32 + 500 + 272 + 675 + 1172 + 198
    passes = (30 + 30 + 83) * 2048  # of one seed
    flops = read(response, prompt + response) + read(prompt, prompt)
    hours = flops / (312e12 * 0.1) / 3600
    assert rows["hpt"].gpu_hours(kind="evaluations") == pytest.approx((3 * final + passes) * hours)
    assert rows["base"].gpu_hours() == pytest.approx((final + passes) * hours)


def test_wall_time_follows_from_how_many_run_at_a_time(rows: dict[str, Row]) -> None:
    hpt, total = rows["hpt"], rows["all"]
    assert hpt.wall_h(8) == pytest.approx(hpt.gpu_hours() / 8)
    one_run = hpt.gpu_hours(kind="runs") / 3 / 8
    evaluations = [job.costs[1].wall / 3600 for job in hpt.jobs if job.kind == "evaluations"]
    assert hpt.wall_h(64) == pytest.approx(
        one_run + max(evaluations)
    )  # three runs and four evaluations, all at once
    assert total.gpu_hours() == pytest.approx(sum(r.gpu_hours() for name, r in rows.items() if name != "all"))
    assert hpt.wall_h(1) == pytest.approx(hpt.gpu_hours())
    assert Row(("", ""), [job for job in hpt.jobs if job.num_gpus == 8]).wall_h(4) is None


def test_the_plan_says_hours_money_and_wall_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: dict[str, Row]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = [*WORDS, f"out={tmp_path / 'out'}", "gpu_hour_price=1.5"]
    assert main([str(PAPER / "suite.yaml"), "--plan", *words]) == 0
    said = capsys.readouterr().out
    assert "at $1.5 an hour" in said
    total = next(line for line in said.splitlines() if line.split()[:1] == ["all"])
    assert f"${two_digits(1.5 * rows['all'].gpu_hours())}" in total
    assert not list(tmp_path.iterdir())
