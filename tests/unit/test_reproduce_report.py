"""From run folders to choice, tables, claims and page, with runs that are missing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from report_material import group_of
from scipy import stats

from hpt_ray.config.load import dump_config
from hpt_ray.evaluation.results import PromptResult, write_results
from hpt_ray.observe.rollout_dump import write_evaluation
from hpt_ray.observe.run_folder import RunFolder, write_json
from hpt_ray.tools.report import RunData
from hpt_ray.tools.report.load import Attempt
from hpt_ray.tools.suite import tables
from hpt_ray.tools.suite.collect import ALL, ID, Record, Results, collect
from hpt_ray.tools.suite.dynamics import findings, offline_ratio
from hpt_ray.tools.suite.jobs import Outcome
from hpt_ray.tools.suite.matrix import RunSpec, Try, best_of
from hpt_ray.tools.suite.paper_tables import MATH, TABLES
from hpt_ray.tools.suite.passes import FINAL, read_passes
from hpt_ray.tools.suite.report import exclusive_solves, write_report
from hpt_ray.tools.suite.runner import Done, look
from hpt_ray.tools.suite.suite import Suite, load_suite

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
out: {out}
recipe: {root}/tests/cluster/tiny.yaml
title: "<a suite>"
models: {{t: {{title: small, config: {{model: {{path: "mini:t"}}, run: {{steps: 4}}}}}}}}
methods:
  grpo: {{title: GRPO, config: {{algorithm: {{name: grpo}}}}}}
  luffy: {{title: LUFFY, config: {{algorithm: {{name: luffy}}}}}}
  hpt: {{title: HPT, config: {{algorithm: {{name: hpt}}}}}}
  hpt_gamma_1: {{title: "HPT, γ = 1/4", tuned_as: hpt, config: {{selection: {{gamma: 0.25}}}}}}
matrix: {{seeds: [1, 2]}}
sets:
  test: {{chain: "mini:test/chain", word: "mini:test/word", lose: "mini:test/lose"}}
  in_distribution: [chain, word]
  out_of_distribution: [lose]
sweep:
  seeds: [9]
  sets: {{chain: "mini:validation/chain"}}
  tries: [{{learner.learning_rate: 1.0e-4}}, {{learner.learning_rate: 2.0e-4}}]
pass_at_k: {{benchmarks: [mini-test-chain], samples: 4, seeds: [1]}}
paper: {{table2: [t], table6: [t]}}
notes: ["A & B"]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(out=tmp_path / "out", root=ROOT), encoding="utf-8")
    return load_suite(path)


def write_run(spec: RunSpec, scores: dict[str, float], offline: list[float], entropy: float) -> None:
    """A finished run: the files that the driver writes, with these numbers. `offline`: shares of ten prompts."""
    folder = RunFolder.create(spec.config.run.dir, spec.id)
    dump_config(spec.config, folder.config)
    before = {f"eval/{name}/mean": 0.0 for name in scores}
    folder.append_metrics({"step": 0, **before})
    for step, _ in enumerate(offline, 1):
        folder.append_metrics(
            {
                "step": step,
                "reward/mean": 0.1 * step,
                "policy/entropy": entropy,
                "rollout/length_mean": 10.0,
                "reward/outcome/correct": 32,
                **({f"eval/{n}/mean": s for n, s in scores.items()} if step == len(offline) else {}),
            }
        )
    attempt = {"solved": 1, "rollouts": 4, "aborted": 0, "reason": "solved"}
    lines = [
        {**attempt, "step": step, "prompt_id": f"q{i}", "rollout_weight": float(i >= 10 * ratio)}
        for step, ratio in enumerate(offline, 1)
        for i in range(10)
    ]
    lines = [{**line, "demo_weight": 1 - line["rollout_weight"]} for line in lines]
    (folder.root / "prompt_history.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8"
    )
    evaluations = {n: {"first": {}, "best": {}, "last": {"step": 4, "mean": s}} for n, s in scores.items()}
    write_json(folder.summary, {"steps": 4, "evaluations": evaluations, "wall_s": 30.0})


def sets(score: float, lose: float) -> dict[str, float]:
    return {"chain": score, "word": score, "lose": lose}


@pytest.fixture
def done(suite: Suite) -> Done:
    """All tries but one; LUFFY was never run, and one seed of the γ ablation failed."""
    for number, run in enumerate(t for t in look(suite).tries if t.id != "t.luffy.try2.s9"):
        write_run(run, {"chain": 0.1 * number}, [0.0], 1.0)
    for run in look(suite).runs:
        if run.method == "grpo":
            write_run(run, sets(0.6 + 0.01 * run.seed, 0.9), [0, 0, 0, 0], 0.5)
        elif run.method == "hpt":
            write_run(run, sets(0.9 + 0.01 * run.seed, 0.8), [0.5, 0.4, 0.2, 0.1 * run.seed], 0.7)
        elif run.id == "t.hpt_gamma_1.s1":
            write_run(run, sets(0.5, 0.5), [0.8, 0.8, 0.7, 0.7], 0.7)
    made = look(suite)
    made.journal.add("t.hpt_gamma_1.s2", Outcome(3.0, "exit code 1: failed: RuntimeError: <no room>"))
    return made


def tallied(correct: int, number: int) -> PromptResult:
    return PromptResult(
        benchmark="mini-test-chain",
        prompt_id=f"q{number}",
        data_source="mini/chain",
        level="1",
        reference_hash="0",
        n=4,
        correct=correct,
        wrong=4 - correct,
        no_answer=0,
        unparsable=0,
        timeout=0,
        error=0,
        mean_tokens=5.0,
        truncated=0,
    )


def evaluate(done: Done, method: str, correct: list[int]) -> None:
    evaluation = next(e for e in done.evaluations if e.method == method)
    evaluation.out.mkdir(parents=True)
    write_results(evaluation.out, [tallied(c, i) for i, c in enumerate(correct)])
    (evaluation.out / "results.json").write_text("{}", encoding="utf-8")


def test_the_best_try_is_chosen_and_a_failed_one_is_not(done: Done) -> None:
    assert done.choices["t", "grpo"].settings == {"learner.learning_rate": 2e-4}
    luffy = done.choices["t", "luffy"]
    assert [t.score is None for t in luffy.tries] == [False, True]
    assert luffy.chosen == 0


def test_of_equal_tries_the_first_is_chosen_and_of_none_there_is_no_choice() -> None:
    values = [1e-4, 2e-4, 4e-4]
    tries = [Try({"lr": v}, score) for v, score in zip(values, [0.5, 0.7, 0.7], strict=True)]
    choice = best_of(tries)
    assert choice is not None
    assert (choice.chosen, choice.at_edge) == (1, [])
    assert best_of([Try({"lr": v}, None) for v in values]) is None
    edge = best_of([Try({"lr": v}, v) for v in values])
    assert edge is not None
    assert edge.at_edge == ["lr"]


def test_the_edge_of_two_values_and_of_phases_is_named() -> None:
    def phases(steps: int, rate: float) -> dict[str, object]:
        return {"phases": [{"steps": steps}, {"learner": {"learning_rate": rate}}]}

    grid = [(20, 1e-3), (40, 5e-4), (60, 2e-3)]
    longest = best_of([Try(phases(*x), score) for x, score in zip(grid, [0.1, 0.2, 0.3], strict=True)])
    between = best_of([Try(phases(*x), score) for x, score in zip(grid, [0.3, 0.2, 0.1], strict=True)])
    two = best_of([Try({"rho": rho, "name": "a"}, rho / 10) for rho in (1.0, 4.0)])
    assert longest is not None
    assert between is not None
    assert two is not None
    assert longest.at_edge == ["phases.1.steps", "phases.2.learner.learning_rate"]
    assert between.at_edge == ["phases.1.steps"]
    assert two.at_edge == ["rho"]


def test_the_gates_verdict_is_by_the_corrected_p(suite: Suite) -> None:
    """Three seeds of which the interval alone is without 0, while Holm's p of three methods is above 0.05."""
    scores = {
        "hpt": [0.90, 0.92, 0.94],
        "hpt_gamma_1": [0.85, 0.84, 0.90],  # differences 0.05, 0.08, 0.04: t = 4.72, p = 0.042
        "grpo": [0.80, 0.95, 0.90],
        "luffy": [0.85, 0.95, 0.90],
    }
    records = [
        Record(f"t.{name}.s{seed}", "t", name, seed, {ALL: score}, {}, {})
        for name, of_method in scores.items()
        for seed, score in enumerate(of_method, 1)
    ]
    results = Results(suite, records)
    against = {c.method: c for c in tables.contrasts(results, "t") if c.measure == ALL}
    gamma = against["hpt_gamma_1"]
    assert abs(gamma.difference.mean) > gamma.difference.ci95
    paired = stats.ttest_rel(scores["hpt"], scores["hpt_gamma_1"]).pvalue
    assert gamma.p_holm == pytest.approx(3 * paired)
    (found,) = (f for f in findings(results, {}) if f.source == "Table 6")
    assert found.verdict == "open"
    assert "p = 0.126 corrected over seeds, 3 runs" in found.numbers
    assert "tuned for γ = 0" in found.numbers


def test_missing_runs_are_named_with_their_reason(done: Done) -> None:
    assert done.missing["t.hpt_gamma_1.s2"] == "exit code 1: failed: RuntimeError: <no room>"
    assert done.missing["t.luffy.try2.s9"] == "not run"
    assert not any("grpo.s" in name for name in done.missing if not name.startswith("pass@"))


def test_scores_with_missing_cells(done: Done) -> None:
    results = collect(done)
    table = tables.scores_table(results, "t")
    assert table.header == ["method", "chain", "word", "lose", ID, "OOD average", ALL, "seeds"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["before training", "GRPO", "HPT", "HPT, γ = 1/4"]  # LUFFY has no run at all
    assert rows["HPT, γ = 1/4"] == ["50.0", "50.0", "50.0", "50.0", "50.0", "50.0", "1"]
    assert rows["HPT"][0] == "91.5 ± 6.4"  # t(0.975, 1) · 0.00707 / √2
    assert rows["before training"][-2:] == ["0.0", ""]


def test_outcomes_of_prompts_widen_the_interval(done: Done) -> None:
    """Both seeds score alike, which says nothing of other prompts."""
    right = {"chain": [1, 1, 0, 1], "word": [1, 0, 1, 1, 1, 0], "lose": [0, 1]}
    scores = {name: fmean(of_set) for name, of_set in right.items()}
    for run in done.runs:
        if run.method == "hpt":
            write_run(run, scores, [0.5, 0.4], 1.0)
    done = look(done.suite)
    groups = [
        group_of(f"{name}#{i}", [bool(x)]) for name, of_set in right.items() for i, x in enumerate(of_set)
    ]
    for run in done.runs:
        if run.method == "hpt":
            write_evaluation(RunFolder(done.folders[run.id]).rollouts, 2, groups)
    results = collect(done)
    assert results.of("t", "hpt")[0].outcomes == {"chain": "1 1 0 1", "word": "1 0 1 1 1 0", "lose": "0 1"}
    found = results.spread("t", "hpt", "chain")
    assert found is not None
    assert (found.mean, found.over) == (pytest.approx(0.75), "seeds and prompts")
    assert found.ci95 == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(right["chain"]))
    without = results.spread("t", "grpo", "chain")
    assert without is not None
    assert without.over == "seeds"


def test_bases_are_averaged_over_and_in_the_interval(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(out=tmp_path / "out", root=ROOT), encoding="utf-8")
    bases = ", ".join(f"{name}: {{model: {{path: 'mini:t-s{i}'}}}}" for i, name in enumerate("abc", 1))
    words = ["matrix.methods=[grpo, hpt]", f"models.t.bases={{{bases}}}", "sweep.tries=[]", "paper={}"]
    suite = load_suite(path, [*words, "pass_at_k.benchmarks=[mini-test-chain]"])
    shift = {"a": 0.0, "b": 0.1, "c": 0.2}
    for run in look(suite).runs:
        better = 0.1 * (run.method == "hpt")
        write_run(run, sets(0.5 + shift[run.base] + better + 0.001 * run.seed, 0.9), [0.5] * 4, 0.5)
    done = look(suite)
    results = collect(done)
    assert {record.unit for record in results.records} == {(base, seed) for base in "abc" for seed in (1, 2)}
    spread = results.spread("t", "grpo", ID)
    assert spread is not None
    assert spread.n == 6
    assert spread.mean == pytest.approx(0.6015)
    assert spread.over == "bases and seeds"
    found = tables.contrasts(results, "t")[0].difference  # what the bases share has cancelled
    assert found.mean == pytest.approx(0.1)
    assert found.ci95 == pytest.approx(0, abs=1e-9)
    asked = [e.id for e in done.evaluations if e.method == "base" or e.base == "b"]
    assert sorted(asked) == [
        f"pass@k t.{name}" for name in ("base.a", "base.b", "base.c", "grpo.b.s1", "hpt.b.s1")
    ]
    assert len({e.out for e in done.evaluations}) == len(done.evaluations)


def test_costs_count_attempts_and_tokens(done: Done) -> None:
    rows = {row[0]: row[1:] for row in tables.costs_table(collect(done), "t").rows}
    assert rows["GRPO"] == ["32", "1,280", "0", "30"]  # 4 steps × 8 prompts; 4 × 32 rollouts × 10 tokens


def test_differences_are_paired_and_leave_out_what_is_missing(done: Done) -> None:
    contrasts = {(c.method, c.measure): c for c in tables.contrasts(collect(done), "t")}
    assert {method for method, _ in contrasts} == {"grpo", "hpt_gamma_1"}
    against_grpo = contrasts["grpo", ID].difference
    assert (against_grpo.n, against_grpo.mean) == (2, pytest.approx(0.3))
    assert contrasts["hpt_gamma_1", ID].difference.n == 1


def test_claims_are_decided_by_the_numbers(done: Done) -> None:
    evaluate(done, "hpt", [0, 4, 2])
    evaluate(done, "grpo", [0, 0, 4])
    found = {f.claim: f for f in findings(collect(done), read_passes(done.evaluations))}
    falls = found["HPT's share of demonstrations falls"]
    starts_less_ends = [0.45 - (0.2 + 0.1) / 2, 0.45 - (0.2 + 0.2) / 2]
    assert falls.verdict == "open"  # two seeds decide little
    assert falls.p_holm is not None
    assert falls.p_holm >= stats.ttest_1samp(starts_less_ends, 0).pvalue
    assert (
        found["HPT's entropy is above GRPO's, mean over the run"].verdict == "open"
    )  # nothing scatters: no p
    assert found["γ = 0 is better than γ = 1/8"].verdict == "open"  # one common seed decides nothing
    large_k = found["HPT's pass@4 is above GRPO's"]
    assert large_k.verdict == "open"  # one seed decides nothing
    assert large_k.numbers.startswith("66.7% against 33.3%: +33.3 points;")
    assert "SFT's pass@4 is above GRPO's" not in found


def test_pass_at_k_is_compared_prompt_by_prompt(done: Done) -> None:
    evaluate(done, "hpt", [0, 4, 2, *[1] * 9])
    evaluate(done, "grpo", [4, 0, 4, *[0] * 9])
    passes = read_passes(done.evaluations)
    hpt, grpo = passes["t", "hpt"], passes["t", "grpo"]
    assert hpt.means() == pytest.approx({1: (0 + 1 + 0.5 + 9 * 0.25) / 12, 2: 6.5 / 12 - 1 / 72, 4: 11 / 12})
    difference = hpt.minus(grpo, 4)
    assert difference is not None
    deltas = [-1, 1, 0, *[1] * 9]  # at k = 4 a prompt with any correct response is solved
    assert (difference.mean, difference.ci95) == (pytest.approx(fmean(deltas)), None)
    found = {f.claim: f.verdict for f in findings(collect(done), passes)}
    assert found["HPT's pass@4 is above GRPO's"] == "open"  # of one seed each


def test_the_papers_tables_stand_beside_ours(done: Done) -> None:
    found = {table.name: (rows, printed) for table, rows, printed in tables.paper_tables(collect(done))}
    assert set(found) == {"table2", "table6"}
    ours, printed = found["table2"]
    assert ours.header == ["method", "average: paper", "small", "ood average: paper", "small"]
    rows = {row[0]: row[1:] for row in ours.rows}
    assert rows["HPT"] == ["52.7", "91.5 ± 6.4", "62.3", "80.0 ± 0.0"]
    assert rows["SFT"] == ["44.5", "–", "46.4", "–"]
    assert rows["Oat-Zero*"] == ["43.8", "–", "46.9", "–"]
    assert printed.rows[0][1:3] == ["12.3", "4.7"]


def test_page_and_numbers(done: Done) -> None:
    evaluate(done, "hpt", [0, 4, 2])
    evaluate(done, "grpo", [0, 0, 4])
    page = write_report(done).read_text(encoding="utf-8")
    assert "<h1>&lt;a suite&gt;</h1>" in page
    assert "A &amp; B" in page
    assert "&lt;no room&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    for title in (
        "Results",
        "Differences",
        "Claims of the paper",
        "The paper&#x27;s tables",
        "pass@k",
        "Tuning",
    ):
        assert f"<h2>{title}</h2>" in page
    assert {path.name for path in (done.suite.out / "figures").iterdir()} >= {
        *("t-methods-id.png", "t-methods-offline.png", "t-gamma-id.png", "t-pass-at-k.png"),
        "t-solve-rates.png",
    }
    numbers = json.loads((done.suite.out / "results.json").read_text(encoding="utf-8"))
    assert numbers["missing"]["t.hpt_gamma_1.s2"]
    assert numbers["suite"]["matrix"]["seeds"] == [1, 2]
    assert numbers["configurations"]["t.hpt"]["learner.learning_rate"] in (1e-4, 2e-4)
    assert {row["method"] for row in numbers["summary"]} == {"base", "grpo", "hpt", "hpt_gamma_1"}
    (exclusive,) = numbers["exclusive_solves"]
    assert exclusive["rows"][-1]["only_a"] == 1


def test_the_offline_ratio_is_that_of_rows() -> None:
    def step(gated: int) -> list[Attempt]:
        return [Attempt(1, f"q{i}", 0, 8, "", float(i >= gated), float(i < gated)) for i in range(128)]

    ratios = {a: offline_ratio(RunData(Path(), {}, attempts=step(a))).values for a in (0, 16, 64, 93, 128)}
    expected = {
        0: 0.0,
        16: 0.0175,
        64: 0.1111,
        93: 0.2493,
        128: 1.0,
    }  # a / (1024 − 7a), as the official code logs
    assert {a: round(float(r[0]), 4) for a, r in ratios.items()} == expected


def test_the_papers_figures_and_table_4(tmp_path: Path) -> None:
    """As configs/paper has it: training evaluates three of the sets, and the scores are of a final evaluation."""
    text = SUITE.format(out=tmp_path / "out", root=ROOT).replace("[chain, word]", "[chain, word, math500]")
    text = text.replace("test: {", 'test: {math500: "mini:test/geo", ').replace("table6: [t]", "table4: [t]")
    text += "final: {benchmarks: [math500]}\n"
    text += "recipe: recipe.yaml\n"
    text = text.replace(f"recipe: {ROOT}/tests/cluster/tiny.yaml\n", "")
    text = re.sub(r"sweep:\n(  .*\n)+", "", text)
    text = text.replace(
        "  hpt_gamma_1:",
        "  hpt_mix: {title: mix, config: {algorithm: {name: hpt, offline_branch: mix}}}\n  hpt_gamma_1:",
    )
    recipe = (
        f'defaults: [{ROOT}/tests/cluster/tiny.yaml]\nevaluation: {{sets: {{chain: "mini:test/chain"}}}}\n'
    )
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    suite = load_suite(path)
    for run in look(suite).runs:
        if run.method != "luffy":
            write_run(run, {"chain": 0.5}, [0.5, 0.2], 1.0)
    done = look(suite)
    solved = {"hpt": [1, 1, 0, 1], "grpo": [1, 0, 1, 0], "hpt_mix": [0, 0, 0, 0]}
    for method, correct in solved.items():
        evaluation = next(e for e in done.evaluations if (e.kind, e.method, e.seed) == (FINAL, method, 1))
        evaluation.out.mkdir(parents=True)
        rows = [
            replace(tallied(4 * c, i), benchmark="math500", level="15"[i > 1]) for i, c in enumerate(correct)
        ]
        write_results(evaluation.out, rows)
        mean = {"benchmarks": {"math500": {"mean": {"value": fmean(correct)}}}}
        (evaluation.out / "results.json").write_text(json.dumps(mean), encoding="utf-8")
    write_report(done)
    figures = {path.name for path in (suite.out / "figures").iterdir()}
    for part in ("methods", "gamma", "offline-branches"):
        assert {f"t-{part}-{name}.png" for name in ("chain", "reward", "offline")} <= figures
    rows = tables.exclusive_table(collect(done), exclusive_solves(done)).rows
    assert [row for row in rows if row[0] == "GRPO"] == [
        ["GRPO", "small", "math500", "1", "2", "+1/−0", "50.0/0.0", "+0/−0", "0.0/0.0"],
        ["GRPO", "small", "math500", "5", "2", "+1/−1", "50.0/50.0", "+27/−8", "20.1/6.0"],
        ["GRPO", "small", "math500", "all", "4", "+2/−1", "50.0/25.0", "+58/−15", "11.6/3.0"],
    ]
    assert rows[-1] == ["mix", "small", "math500", "all", "4", "+3/−0", "75.0/0.0", "–", "–"]


def test_a_report_without_any_run(suite: Suite) -> None:
    page = write_report(look(suite))
    assert "t.grpo.try1.s9" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_papers_numbers_agree_with_their_averages(table: object) -> None:
    for row in table.rows:  # type: ignore[attr-defined]
        values = dict(zip(table.columns, row.values, strict=True))  # type: ignore[attr-defined]
        assert values["average"] == pytest.approx(np.mean([values[name] for name in MATH]), abs=0.051)
