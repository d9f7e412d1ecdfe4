"""The report of a real run, opened in a real browser: every view, nothing fetched, nothing broken."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import needs_browser
from command import ROOT, TINY, child_environment, run_main, write_reward_function

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(240), needs_browser]

HOSTILE = (
    "</pre><script>window.broken = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.broken = 1'>"
)


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
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for dump in (run_folder / "rollouts").iterdir():
        table = pq.read_table(dump)
        texts = pa.array([f"{HOSTILE}{text}" for text in table["text"].to_pylist()])
        pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", texts), dump)
    command = [sys.executable, "-m", "hpt_ray.tools.report", str(run_folder)]
    command += ["--out", str(tmp_path_factory.mktemp("page"))]
    finished = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return Path(finished.stdout.strip())


def test_a_real_run_fills_every_view(browser: Any, report: Path, run_folder: Path) -> None:
    """More is in `tests/unit/test_saved_page.py`, of runs that are made up."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(report.as_uri())
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
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    page.close()
