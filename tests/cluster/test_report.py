"""The report of a real run, opened in a real browser: nothing fetched, nothing broken, readable on a phone."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from browser import CONTRASTS, needs_browser
from command import ROOT, TINY, child_environment, run_main, write_reward_function

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(240), needs_browser]

HOSTILE = (
    "</pre><script>window.broken = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.broken = 1'>"
)
# What is looked at for its contrast, where a page has it.
PARTS = ["h1", "p", "a", "dt", "dd", "caption", "thead th", "tbody th", "td", "summary", "pre"]
PARTS += [".lead", ".note", ".tag.good", ".tag.bad", ".soft"]
# Tables and pictures wider than the page, unless they lie in a box that scrolls.
TOO_WIDE = """() => [...document.querySelectorAll("main *, header *")].filter(element => {
  const box = element.closest(".scroll, nav ul, pre");
  const widest = (box ?? element).getBoundingClientRect().right;
  return widest > document.documentElement.clientWidth + 0.5;
}).map(element => element.outerHTML.slice(0, 80))"""


@dataclass
class Opened:
    """A page of a browser and what happened while it was opened."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps whose prompts go both ways, evaluated twice."""
    folder = tmp_path_factory.mktemp("report")
    words = [f"run.dir={folder}", "run.steps=4", f"reward.function={write_reward_function(folder)}"]
    words += ["evaluation.every=2", "evaluation.sets.chain=mini:validation/chain"]
    finished = run_main([*TINY, *words])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return (folder / "latest").resolve()


@pytest.fixture(scope="module")
def reports(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of the run, and the page of it beside a second seed and another method."""
    out = tmp_path_factory.mktemp("pages")
    others = []
    for name, changes in {"seed": ("run", "seed", 1), "method": ("algorithm", "name", "grpo")}.items():
        other = out / name
        shutil.copytree(run_folder, other)
        config = yaml.safe_load((other / "config.yaml").read_text())
        config[changes[0]][changes[1]] = changes[2]
        (other / "config.yaml").write_text(yaml.safe_dump(config))
        others.append(other)
    for dump in (run_folder / "rollouts").iterdir():
        table = pq.read_table(dump)
        texts = pa.array([f"{HOSTILE}{text}" for text in table["text"].to_pylist()])
        pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), dump)
    pages = {"run": [run_folder], "comparison": [run_folder, *others]}
    return {name: write_report(runs, out / f"page-{name}") for name, runs in pages.items()}


def write_report(runs: list[Path], out: Path) -> Path:
    command = [sys.executable, "-m", "hpt_ray.tools.report", *map(str, runs), "--out", str(out)]
    finished = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return Path(finished.stdout.strip())


def opened(browser: Any, report: Path, width: int, scheme: str) -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    found = Opened(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.messages.append(message.text))
    page.on("pageerror", lambda error: found.messages.append(str(error)))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_comparison_stands_by_itself(
    browser: Any, reports: dict[str, Path], scheme: str, width: int
) -> None:
    """The page of one run has its own tests: `tests/unit/test_saved_page.py`."""
    report = reports["comparison"]
    found = opened(browser, report, width, scheme)
    page = found.page
    assert found.messages == []
    assert [url for url in found.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("window.broken") is None
    sizes = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(sizes) >= 6
    assert all(complete and natural > 0 for complete, natural in sizes)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 13
    contrasts = page.evaluate(CONTRASTS, PARTS)
    assert min(contrasts.values()) >= 4.5, contrasts
    page.close()


def test_pictures_turn_dark_with_the_page(browser: Any, reports: dict[str, Path]) -> None:
    """What was white is the colour of the card that the picture lies on; a colour is still that colour."""
    found = opened(browser, reports["comparison"], 1280, "dark")
    figure = found.page.locator("figure").first
    pixel = """async image => {
      const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
      pen.filter = getComputedStyle(image).filter;
      pen.drawImage(image, 0, 0);
      return [...pen.getImageData(2, 2, 1, 1).data];
    }"""
    assert figure.locator("img").evaluate(pixel)[:3] == pytest.approx([18, 18, 18], abs=1)
    card = figure.evaluate("element => getComputedStyle(element).backgroundColor")
    assert card == "rgb(18, 18, 18)"
    found.page.close()


def test_a_real_run_fills_every_view(browser: Any, reports: dict[str, Path], run_folder: Path) -> None:
    found = opened(browser, reports["run"], 1280, "light")
    page = found.page
    last = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    page.get_by_text(f"{last['eval/chain/mean']:.3f} (step 4)").first.wait_for()
    page.get_by_role("tab", name="Curves").click()
    for title in ("Reward", "Offline ratio", "Entropy", "Response length", "Memory"):
        figure = page.locator("figure", has=page.get_by_text(title, exact=True))
        figure.scroll_into_view_if_needed()  # what is not in sight is not drawn
        figure.locator(".entry").first.wait_for()
    page.get_by_role("tab", name="Gate").click()
    page.locator("canvas[data-cells]").wait_for()
    page.get_by_role("tab", name="Time").click()
    page.locator(".timeline th", has_text="waited for").first.wait_for()
    page.get_by_role("tab", name="Rollouts").click()
    page.locator(".hit").first.click()
    text = page.locator(".response:not(.demonstration) pre").first.text_content()
    assert text.startswith("</pre><script>window.broken = 1</script>")
    assert page.evaluate("window.broken") is None
    assert found.messages == []
    assert [url for url in found.requests if not url.startswith("data:")] == [reports["run"].as_uri()]
    page.close()
