"""The report as a file: everything in it, nothing fetched, nothing that a model wrote read as HTML."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from report_material import NASTY, evaluate, make_run, saved_of

from hpt_ray.config import renamed
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report import Html, Pictures, Section, escape, figure_html, page, table_html
from hpt_ray.tools.report.__main__ import main
from hpt_ray.tools.watch import save

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Elements of a page, checked to be well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(text: str) -> Page:
    """What holds for every page."""
    found = Page(text)
    assert found.all("script") == []
    links = [
        value for _, a in found.elements for name, value in a.items() if name in ("src", "href", "srcset")
    ]
    assert all(link and link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert all(len(image["alt"] or "") > 20 for image in found.all("img"))
    assert all("scope" in head for head in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} == {a["href"] for a in found.all("a")}
    return found


def saved_page_of(root: Path, out: Path) -> tuple[Page, dict[str, Any], dict[str, str]]:
    """The page of one run, its data, and the blocks of its summary as texts by title."""
    found, saved = saved_pages_of(root, out=out)
    (of_run,) = saved["of"].values()
    assert saved["comparison"] is None
    return found, of_run, texts_of(of_run["summary"])


def texts_of(blocks: list[dict[str, Any]]) -> dict[str, str]:
    return {block["title"]: json.dumps(block, ensure_ascii=False) for block in blocks}


def saved_pages_of(*roots: Path, out: Path) -> tuple[Page, dict[str, Any]]:
    """The page of one run or several, and its data."""
    assert main([*map(str, roots), "--out", str(out)]) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    found, saved = Page(text), saved_of(out / "index.html")
    assert [set(attributes) for attributes in found.all("script")] == [{"type", "id"}, set(), set()]
    assert {tag for tag, _ in found.elements} >= {"style", "main", "nav"}
    links = [v for _, a in found.elements for name, v in a.items() if name in ("src", "href", "srcset")]
    assert links == ["data:,"]
    assert not [name for _, a in found.elements for name in a if name.startswith("on")]
    (policy,) = (a["content"] for a in found.all("meta") if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "script-src 'unsafe" not in policy
    assert policy.count("sha256-") == 2
    return found, saved


def test_the_page_of_a_run_has_every_part(tmp_path: Path) -> None:
    root = make_run(tmp_path, steps=9)
    evaluate(root / "evaluation", [0, 3, 8])
    fault = {"step": 10, "faults/rollout_restarted": 1, "memory/driver_mb": 100.0}
    RunFolder(root).append_metrics(fault)
    _, saved, blocks = saved_page_of(root, tmp_path / "out")
    assert [*blocks] == ["Overview", "Evaluations", "Prompts", "Faults", "Settings", "Every metric"]
    assert '["10", "rollout restarted", "1"]' in blocks["Faults"]
    assert '["2", "learner/skipped updates", "1"]' in blocks["Faults"]
    assert "Learned: mini/4" in blocks["Prompts"]  # right: none of four, one, two
    assert '["easy", "0.000 (step 0)", "0.889 (step 8)", "0.889 (step 8)"]' in blocks["Evaluations"]
    assert '["mini-chain", "3", "8"' in blocks["Evaluations"]
    assert {"reward/mean", "policy/entropy", "optim/lr", "faults/rollout_restarted"} <= set(
        saved["curves"]["curves"]
    )
    assert saved["gate"]["solved step"]["prompts"] == 12
    assert len(saved["groups"]["step"]) == 9 * 4
    assert saved["config"]["run.name"] == "demo"


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of long responses the newest steps, the first and the worst stay, and not all prompts of each."""
    monkeypatch.setattr(save, "MOST_CHARS", {"step": 60_000, "eval": 60_000})
    monkeypatch.setattr(save, "MOST_POINTS", 5)
    root = make_run(tmp_path, steps=12, text="long " * 1000)
    _, saved, _ = saved_page_of(root, tmp_path / "out")
    kept = sorted({group["step"] for group in saved["groups"]["step"]})
    assert kept == [1, 2, 12]  # 2 has the lowest reward
    assert all(len(group["responses"]) == 4 for group in saved["groups"]["step"])
    assert len(saved["groups"]["step"]) == 3
    assert (
        "those of 3 of 12 steps (1: 1 of 4 prompts, 2: 1 of 4 prompts, 12: 1 of 4 prompts)" in saved["note"]
    )
    assert "the mean, lowest and highest of 3 steps each" in saved["note"]
    assert len(saved["curves"]["curves"]["reward/mean"]["mean"]) == 5


def test_what_a_model_wrote_is_text(tmp_path: Path) -> None:
    nasty = NASTY.replace("\ud800", "")
    root = make_run(tmp_path, text=nasty, extra={"eval/<b>$x^$&/mean": 0.5})
    found, saved, blocks = saved_page_of(root, tmp_path / "alone")
    assert {one["text"] for group in saved["groups"]["step"] for one in group["responses"]} == {
        f"{nasty} {i}" for i in range(4)
    }
    assert "<b>$x^$&" in blocks["Evaluations"]
    assert found.all("b") == [{}]  # the word `Runs`
    found, both = saved_pages_of(root, make_run(tmp_path, seed=1), out=tmp_path / "out")
    assert "<b>$x^$&" in texts_of(both["comparison"])["Results"]
    assert found.all("b") == [{}]


def test_escape_leaves_what_is_html_and_mends_what_is_no_text() -> None:
    assert escape("<a href='x'>&") == "&lt;a href=&#x27;x&#x27;&gt;&amp;"
    assert escape(Html("<b>x</b>")) == "<b>x</b>"
    assert escape(NASTY).encode("utf-8")
    assert escape("line\n\tπ 你好 🙂") == "line\n\tπ 你好 🙂"


@pytest.mark.parametrize(
    ("steps", "done", "rollouts"),
    [(0, False, True), (1, False, True), (1, True, True), (6, True, False), (80, True, True)],
)
def test_any_run_has_a_page(tmp_path: Path, steps: int, done: bool, rollouts: bool) -> None:
    root = make_run(tmp_path, steps=steps, done=done, rollouts=rollouts)
    _, _, blocks = saved_page_of(root, tmp_path / "out")
    assert ("the run goes on, or was stopped" in blocks["Overview"]) == (not done)
    assert ("No step is done yet" in blocks["Overview"]) == (steps == 0)
    assert ("there is no solve rate to show" in blocks.get("Prompts", "")) == (not rollouts)


def test_a_run_may_lack_every_file_but_its_configuration(tmp_path: Path) -> None:
    root = make_run(tmp_path, done=False)
    (root / "prompt_history.jsonl").unlink()
    for dump in (root / "rollouts").iterdir():
        dump.unlink()
    lines = [
        {"step": 1, "some/new_metric": 3.5, "eval/a/mean": 1},
        {"step": 2, "time/step_s": None, "eval/b/mean": 0},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, saved, blocks = saved_page_of(root, tmp_path / "out")
    assert "some/new_metric" in blocks["Every metric"]
    assert "some/new_metric" in saved["curves"]["curves"]


def test_a_run_of_version_0_1_is_shown_under_the_names_of_today(tmp_path: Path) -> None:
    root = tmp_path / "run-0.1"
    shutil.copytree(Path(__file__).resolve().parents[1] / "fixtures" / "run-0.1", root)
    _, saved, blocks = saved_page_of(root, tmp_path / "out")
    assert '["prompts seen", "16"]' in blocks["Overview"]  # the lines of feedback.jsonl
    assert '["rollouts per prompt", "4"]' in blocks["Overview"]
    assert (saved["gate"]["solved step"]["prompts"], len(saved["gate"]["solved attempt"]["cells"])) == (
        16,
        16,
    )
    (metrics,) = next(block["tables"] for block in saved["summary"] if block["title"] == "Every metric")
    for names in ([row[0] for row in metrics["rows"]], [*saved["curves"]["curves"]]):
        for old, new in renamed.METRICS.items():
            assert not [name for name in names if name.startswith(old)]
            assert [name for name in names if name.startswith(new)]
        assert "rollout/off_policy_steps/1" in names
    assert {(group["step"], group["branch"]) for group in saved["groups"]["step"]} == {
        (step, "both") for step in range(1, 5)
    }


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, seed=0),
        make_run(tmp_path, seed=1),
        make_run(tmp_path, "algorithm.name=grpo", steps=4, done=False),
        make_run(tmp_path, "algorithm.name=sft", "group_size=0", rollouts=False),
    ]
    begun = make_run(tmp_path, "algorithm.name=dapo", steps=0, done=False)
    for number, run in enumerate(runs):
        evaluate(run / "evaluation", [0, number, 8])
    _, saved = saved_pages_of(*runs, begun, out=tmp_path / "out")
    blocks = texts_of(saved["comparison"])
    titles = ["Methods", "Left out", "Results", "pass@k", "Prompts", "Costs", "What differs", "Runs"]
    assert [*blocks] == titles
    assert saved["title"] == "hpt · grpo · sft"
    assert saved["methods"] == [
        ["hpt", [runs[0].name, runs[1].name]],
        ["grpo", [runs[2].name]],
        ["sft", [runs[3].name]],
    ]
    assert begun.name in blocks["Left out"]
    assert "not at the same step" in blocks["Results"]
    assert '["hard", {"best": "50.5 ± 0.7"}, ' in blocks["Results"]  # hpt, two seeds
    assert '["hpt", "2", "75.2 ± 0.4", "± 3.2", "–", "–"]' in blocks["Results"]
    assert '["algorithm.name", "hpt", "grpo", "sft"]' in blocks["What differs"]
    pictures = [picture for block in saved["comparison"] for picture in block.get("pictures", ())]
    assert [alt.partition(":")[0] for _, alt, _ in pictures] == [
        "pass@k on mini-chain",
        "Heat maps of solve rates by prompt and attempt, one per method",
    ]
    assert all(address.startswith("data:image/png;base64,iVBOR") for address, _, _ in pictures)
    assert [run["id"] for run in saved["runs"]] == [*saved["of"]] == [run.name for run in runs]
    assert "minus hpt" in blocks["Results"]
    one_method = saved_pages_of(*runs[:2], out=tmp_path / "alone")[1]["comparison"]
    assert "95 % interval" in texts_of(one_method)["Results"]
    assert "minus" not in texts_of(one_method)["Results"]  # there is no other to take it from
    kept = saved["of"][runs[2].name]
    assert kept["config"]["algorithm.name"] == "grpo"
    assert "eval/all sets/mean" in kept["curves"]["curves"]
    assert kept["gate"]["solved step"]["cells"]
    assert len(kept["groups"]["step"]) == 4 * 4


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    second = shutil.copytree(first, tmp_path / "b" / first.name)
    _, saved = saved_pages_of(first, second, out=tmp_path / "out")
    assert [*saved["of"]] == [str(first), str(second)]


def test_evaluations_on_the_command_line_go_to_their_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_run(tmp_path)
    evaluation = evaluate(tmp_path / "evaluated", [1, 2])
    (evaluation / "config.yaml").write_text(f"model: {root}/checkpoints/step-000006/hf\n")
    assert main([str(root), str(evaluation), "--out", str(tmp_path / "out")]) == 0
    assert "mini-chain" in str(saved_of(tmp_path / "out" / "index.html")["of"])
    (evaluation / "config.yaml").write_text("model: elsewhere\n")
    assert main([str(root), str(evaluation)]) == 2
    assert "none of the runs given" in capsys.readouterr().err
    assert main([str(evaluation)]) == 2
    assert "run folders of their models" in capsys.readouterr().err


def test_mistakes_are_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    runs = [make_run(tmp_path, steps=0, done=False, seed=seed) for seed in (0, 1)]
    assert main([*map(str, runs)]) == 2
    assert "None of the runs has done a step yet" in capsys.readouterr().err
    root = make_run(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([str(root), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    (root / "rollouts" / "step-000001.parquet").write_text("no parquet")
    assert main([str(root)]) == 2
    assert "step-000001.parquet" in capsys.readouterr().err


def test_the_report_goes_into_the_run_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_run(tmp_path)
    assert main([str(root)]) == 0
    assert capsys.readouterr().out.strip() == str(root / "report" / "index.html")
    assert (root / "report" / "index.html").is_file()


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docs = Path(__file__).resolve().parents[2] / "docs" / "report.md"
    (code,) = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {"paths": [make_run(tmp_path, seed=seed) for seed in (0, 1)]}
    exec(compile(code, "report.md", "exec"), names)
    assert len(check(names["text"]).all("img")) == 1
    assert (tmp_path / "reward.png").is_file()


def test_parts_make_a_page(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1))
    table = table_html([["a<b", 1], ["c", Html("<b>2</b>")]], ["name", "value"], "Two rows & more")
    picture = Pictures(tmp_path).add("empty", figure, "An empty figure, for the test of the parts", "Nothing")
    other = figure_html(figure, 'With "quotes" in its words')
    text = page("A <title>", [Section("One & two", table + picture), Section("Three", other)])
    found = check(text)
    assert found.all("section") == [{"id": "one-two"}, {"id": "three"}]
    assert "a&lt;b" in table
    assert "<b>2</b>" in table
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")
    assert [(i["width"], i["height"]) for i in found.all("img")] == [("192", "96")] * 2
