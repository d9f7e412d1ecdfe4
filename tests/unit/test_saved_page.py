"""The saved page of one run and of several in a real browser: all views, nothing fetched, hostile text is text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRASTS, needs_browser
from report_material import NASTY, evaluate, make_run

from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.tools.report.__main__ import load_all, write_report

pytestmark = [pytest.mark.timeout(240), needs_browser]
HOSTILE = (
    NASTY.replace("\ud800", "") + "<img src=x onerror='window.broken = 1'><script>window.broken = 1</script>"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_run(tmp_path_factory.mktemp("runs"), steps=12, text=HOSTILE, extra={"phase": 1})
    RunFolder(root).append_metrics({"step": 13, "phase": 2, "reward/mean": 0.5})
    return write_report(load_all([root]))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one method, and another method."""
    folder = tmp_path_factory.mktemp("several")
    runs = [make_run(folder, seed=seed, text=HOSTILE) for seed in (0, 1)]
    runs.append(make_run(folder, "algorithm.name=grpo", steps=4))
    for number, run in enumerate(runs):
        evaluate(run / "evaluation", [0, number, 8])
    return write_report(load_all(runs))


@contextmanager
def opened(browser: Any, report: Path, width: int, scheme: str) -> Iterator[Any]:
    """The page, in which nothing goes wrong and nothing is fetched."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert messages == []
    assert page.evaluate("window.broken") is None
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.querySelectorAll('img:not(.summary img), #view script').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


@pytest.fixture(params=[(390, "dark"), (1440, "light")], ids=["phone", "desktop"])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with opened(browser, report, *request.param) as page:
        yield page


@pytest.fixture(params=[(390, "dark"), (1440, "light")], ids=["phone", "desktop"])
def compared(browser: Any, several: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with opened(browser, several, *request.param) as page:
        yield page


def test_the_summary_is_readable(page: Any) -> None:
    page.locator("td", has_text="1.000 (step 12)").first.wait_for()
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    parts = ["h1", "h2", "p.soft", "dt", "dd", "caption", "thead th", "tbody th", "td", "summary"]
    contrasts = page.evaluate(CONTRASTS, [f"#view {part}" for part in parts])
    assert len(contrasts) == len(parts)
    assert min(contrasts.values()) >= 4.5, contrasts


def test_a_curve_has_its_values_and_its_marks(page: Any) -> None:
    page.get_by_role("tab", name="Curves").click()
    figure = page.locator("figure", has=page.get_by_text("Reward", exact=True))
    figure.locator(".entry b").get_by_text("0.5", exact=True).wait_for()
    over = figure.locator(".u-over")
    box = over.bounding_box()
    for step, mark in ((2, "▲ learner/skipped_updates 1"), (13, "▲ phase 2")):
        # The axis goes from the first step with a value to the last.
        over.hover(position={"x": min(box["width"] - 1, box["width"] * step / 13), "y": box["height"] / 2})
        assert mark in figure.locator(".legend").text_content()
    page.locator("label", has_text="Smooth").locator("select").select_option("5")
    figure.locator(".entry b").get_by_text("0.6", exact=True).wait_for()  # of 0.25, 1, 0.75, 0.5, 0.5


def test_from_the_gate_map_to_a_response_and_a_filter(page: Any) -> None:
    page.get_by_role("tab", name="Gate").click()
    canvas = page.locator("canvas[data-cells='48']")
    canvas.wait_for()
    page.get_by_placeholder("Find a prompt by its id").fill("mini/11")
    page.get_by_placeholder("Find a prompt by its id").press("Enter")
    page.locator("canvas[data-cells='4']").wait_for()
    page.get_by_role("tab", name="Rollouts").click()
    page.get_by_text("50 rollouts in the newest 12 of 12 steps").wait_for()
    page.get_by_role("button", name="More").click()
    page.get_by_text("100 rollouts in the newest 12 of 12 steps").wait_for()
    page.locator("label", has_text="Outcome").locator("select").select_option("wrong")
    page.get_by_placeholder("Prompt id").fill("mini/11")
    page.get_by_placeholder("Prompt id").press("Enter")
    page.get_by_text("rollouts in 12 steps, all").wait_for()
    assert {*page.locator(".hit .id").all_text_contents()} == {"mini/11"}
    assert {*page.locator(".hit .tag").all_text_contents()} == {"wrong"}
    page.locator(".hit").first.click()
    text = page.locator(".response:not(.demonstration) pre").first.text_content()
    assert text.startswith("</pre><script>alert('x')</script> ␀␛[31m")
    assert "[U+202E]" in text


def test_what_is_not_in_the_file_is_said(page: Any) -> None:
    page.get_by_role("tab", name="Time").click()
    page.get_by_text("is not in the saved page; hpt_ray watch shows it").wait_for()
    page.get_by_role("tab", name="Configuration").click()
    page.locator("tbody tr", has_text="algorithm.name").wait_for()


def test_several_runs_are_compared_and_drawn_over_each_other(compared: Any) -> None:
    page = compared
    page.locator("h1", has_text="hpt · grpo").wait_for()
    assert "75.2 ± 0.4" in page.locator("td.best").all_text_contents()
    pictures = page.locator(".summary img")
    assert pictures.evaluate_all("all => all.map(one => one.complete && one.naturalWidth > 0)") == [
        True,
        True,
    ]
    contrasts = page.evaluate(
        CONTRASTS, ["h1", "h2", ".summary p", "figcaption", "caption", "th", "td", "td.best"]
    )
    assert min(contrasts.values()) >= 4.5, contrasts
    page.locator("#view label", has_text="Run").locator("select").select_option(index=1)
    page.locator("h2", has_text="Every metric").or_(
        page.locator("summary", has_text="Every metric")
    ).wait_for()
    page.get_by_role("tab", name="Configuration").click()
    row = page.locator("tbody tr", has_text="algorithm.name")
    row.wait_for()
    assert sorted(row.locator("td").all_text_contents()) == ["grpo", "hpt", "hpt"]
    page.get_by_role("tab", name="Gate").click()
    page.locator("#view label", has_text="Run").locator("select").select_option(index=2)
    page.locator("canvas[data-cells='16']").wait_for()  # four steps


def test_seeds_are_drawn_as_their_mean(compared: Any) -> None:
    page = compared
    page.get_by_role("tab", name="Curves").click()
    figure = page.locator("figure", has=page.get_by_text("Evaluation: hard", exact=True))
    figure.scroll_into_view_if_needed()  # what is not in sight is not drawn
    figure.locator(".entry", has_text="grpo").wait_for()
    assert figure.locator(".entry .name").all_text_contents() == ["hpt", "grpo"]
    assert figure.locator(".entry b").all_text_contents() == ["0.505", "0.5"]
    with page.expect_download() as download:
        figure.get_by_title("Save as a picture").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.locator("label", has_text="Draw").locator("select").select_option("runs")
    figure.locator(".entry").nth(2).wait_for()
    assert sorted(figure.locator(".entry b").all_text_contents()) == ["0.5", "0.5", "0.51"]
    assert page.locator("figure", has=page.get_by_text("Evaluation: all sets", exact=True)).count() == 1
