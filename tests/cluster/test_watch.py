"""The live page in a real browser, on a run that grows while it is open, on hostile texts and on much data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import needs_browser
from command import MAIN, ROOT, TINY, child_environment, write_reward_function

from hpt_ray.observe.rollout_dump import SCHEMA, dump_of, write_evaluation
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.types import FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300), needs_browser]

N, PROMPTS = 4, 6
HOSTILE = "</pre><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
HOSTILE += "\x1b[31mred\x1b[0m \u202eevil "
OPEN_S = 2.0  # in which a large folder is open on an idle machine


def write_step(folder: RunFolder, step: int, text: str = "1+1=2", **more: float) -> None:
    """One step of a run: its line, its attempts and its rollouts. Prompt i is solved from step i + 1 on."""
    lines, attempts = [], []
    for i in range(PROMPTS):
        correct = min(N, max(0, step - i))
        weights = {"rollout_weight": float(correct > 0), "demo_weight": float(correct == 0)}
        branch = "rollouts" if correct else "demonstration"
        about = {
            "step": step,
            "prompt_id": f"sums/{i}",
            "reason": "solved" if correct else "unsolved",
            **weights,
        }
        attempts.append({**about, "correct": correct, "rollouts": N, "aborted": 0})
        shared = {"group": i, "data_source": "sums", "prompt": f"What is 1+{i}?", "reference": str(1 + i)}
        shared |= {
            "demonstration": f"It is {1 + i}.",
            "branch": branch,
            "num_correct": correct,
            "num_rollouts": N,
        }
        lines += [
            {
                **about,
                **shared,
                "request_id": f"sums/{i}",
                "sample": j,
                "text": f"{text} no. {j} of step {step}",
            }
            | {"token_ids": [5, 6], "logprobs": [-0.1, -3.0], "finish": "stop", "weight_version": step}
            | {
                "score": float(j < correct),
                "outcome": "correct" if j < correct else "wrong",
                "extracted": "2",
                "advantage": float(j < correct) - correct / N,
            }
            for j in range(N)
        ]
    pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), dump_of(folder.rollouts, step))
    with (folder.root / "prompt_history.jsonl").open("a") as file:
        file.writelines(json.dumps(attempt) + "\n" for attempt in attempts)
    folder.append_metrics({"step": step, "reward/mean": step / 10, "policy/entropy": 1 / step, **more})


def new_run(parent: Path, name: str, steps: int = 0, total: int = 10) -> RunFolder:
    folder = RunFolder.create(parent, name)
    folder.config.write_text(f"run: {{name: {name}, steps: {total}, seed: 0}}\nalgorithm: {{name: {name}}}\n")
    for step in range(1, steps + 1):
        write_step(folder, step)
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """`served(folder)` starts the command on a free port and returns the page's address."""
    started: list[subprocess.Popen[str]] = []

    def serve(folder: Path) -> str:
        command = [sys.executable, "-m", "hpt_ray", "watch", str(folder), "--port", "0"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.stdout.readline().strip()

    yield serve
    for process in started:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


class Page:
    """A page, with what was requested and what went wrong while it was open."""

    def __init__(self, browser: Any, address: str, hash: str = "", width: int = 1440, scheme: str = "light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(60_000)
        self.address, self.messages, self.requests = address, [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address + hash)
        self.page.wait_for_selector("body[data-ready]")

    def close(self) -> None:
        """Nothing went wrong, no foreign script ran, and nothing was fetched from elsewhere."""
        assert self.messages == []
        assert self.page.evaluate("window.broken") is None
        assert [url for url in self.requests if not url.startswith((self.address, "data:"))] == []
        self.page.close()


def values_at_the_cursor(figure: Any) -> dict[str, str]:
    """What the legend says at places all over the curve, by step."""
    over, legend, found = figure.locator(".u-over"), figure.locator(".legend"), {}
    for i in range(21):
        over.hover(position={"x": (over.bounding_box()["width"] - 1) * i / 20, "y": 50})
        found[legend.locator("span").first.text_content().partition(" · ")[0]] = legend.locator(
            "b"
        ).text_content()
    return found


def test_a_run_is_followed_while_it_grows_and_laid_over_another(
    browser: Any, served: Any, tmp_path: Path
) -> None:
    growing = new_run(tmp_path, "hpt", steps=2)
    opened = Page(browser, served(tmp_path))
    page = opened.page
    reward = page.locator("figure", has=page.get_by_text("Reward", exact=True))
    reward.locator(".entry b").get_by_text("0.2", exact=True).wait_for()
    write_step(growing, 3, **{"faults/engine_lost": 1})
    reward.locator(".entry b").get_by_text("0.3", exact=True).wait_for()
    assert page.locator(".run .facts").text_content().startswith("hpt · step 3 of 10")
    assert values_at_the_cursor(reward).items() >= {("step 1", "0.1"), ("step 2", "0.2"), ("step 3", "0.3")}
    growing.cut_after(1)  # as a resume does; what comes then is not what was there
    for step, value in ((2, 0.9), (3, 0.8), (4, 0.7)):
        write_step(growing, step, **{"reward/mean": value})
    page.mouse.move(0, 0)
    reward.locator(".entry b").get_by_text("0.7", exact=True).wait_for()
    assert values_at_the_cursor(reward).items() >= {("step 1", "0.1"), ("step 2", "0.9"), ("step 4", "0.7")}
    write_step(growing, 5)
    new_run(tmp_path, "grpo", steps=5)
    page.locator(".run", has_text="grpo").locator("input").check()
    reward.locator(".entry", has_text="grpo").wait_for()
    assert reward.locator(".entry").count() == 2
    assert (
        len({*reward.locator(".entry .swatch").evaluate_all("all => all.map(one => one.style.background)")})
        == 2
    )
    page.get_by_role("tab", name="Configuration").click()
    row = page.locator("tbody tr", has_text="algorithm.name")
    row.wait_for()
    assert sorted(row.locator("td").all_text_contents()) == ["grpo", "hpt"]
    link = page.url
    opened.close()
    again = Page(browser, link.partition("#")[0], "#" + link.partition("#")[2])  # a link shows the same
    again.page.locator("tbody tr", has_text="algorithm.name").wait_for()
    again.close()


def test_from_a_cell_of_the_gate_map_to_its_rollouts_and_a_filter(
    browser: Any, served: Any, tmp_path: Path
) -> None:
    new_run(tmp_path, "hpt", steps=5)
    opened = Page(browser, served(tmp_path), "#view=gate&order=name")
    page = opened.page
    canvas = page.locator("canvas[data-cells='30']")
    canvas.wait_for()
    box = canvas.bounding_box()
    left = 150 + (box["width"] - 158) * 3.5 / 5  # step 4 of 5
    canvas.hover(position={"x": left, "y": 14 * 2.5})
    assert (
        "sums/2 · step 4 · 1 attempt · 50 % correct · trained on rollouts"
        in page.locator(".tip").text_content()
    )
    canvas.click(position={"x": left, "y": 14 * 2.5})
    page.locator("h2", has_text="sums/2").wait_for()
    detail = page.locator(".detail")
    assert "Step 4 · 2 of 4 correct · trained on rollouts" in detail.text_content()
    assert detail.locator(".demonstration pre").text_content() == "It is 3."
    assert detail.locator(".response:not(.demonstration)").count() == N
    colour = detail.locator("label", has_text="Colour tokens by").locator("select")
    tokens = detail.locator("pre span")
    colour.select_option("logprob")
    detail.locator("pre span[title]").nth(2 * N - 1).wait_for()
    assert tokens.all_text_contents() == ["[5]", "[6]"] * N
    assert "log π -3" in tokens.nth(1).get_attribute("title")
    colour.select_option("advantage")
    detail.locator("pre span:not([title])").first.wait_for()
    grounds = tokens.evaluate_all("all => all.map(one => one.style.backgroundColor)")
    assert [*map(grounds.count, sorted({*grounds}))] == [2, 2]  # above 0, and below
    colour.select_option("mask")
    detail.get_by_text("in the loss").first.wait_for()
    assert tokens.count() == N  # the rollouts, and not the demonstration
    page.locator("label", has_text="Outcome").locator("select").select_option("wrong")
    page.get_by_placeholder("Prompt id").fill("sums/5")
    page.get_by_placeholder("Prompt id").press("Enter")
    page.get_by_text("20 rollouts in 5 steps, all").wait_for()
    assert {*page.locator(".hit .id").all_text_contents()} == {"sums/5"}
    page.locator(".hit").first.click()
    page.locator("h2", has_text="sums/5").wait_for()
    opened.close()


def test_a_real_run_appears_and_is_followed_to_its_end(browser: Any, served: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    opened = Page(browser, served(runs))
    page = opened.page
    page.set_default_timeout(150_000)
    words = [f"run.dir={runs}", "run.steps=3", f"reward.function={write_reward_function(tmp_path)}"]
    with (tmp_path / "log").open("w") as log:
        training = subprocess.Popen(
            [*MAIN, *TINY, *words], cwd=ROOT, env=child_environment(), stdout=log, stderr=log
        )
    try:
        page.locator(".run .facts", has_text="step 3 of 3").wait_for()
        assert training.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        training.terminate()
        training.wait(60)
    page.locator(".run .facts", has_text="done").wait_for()
    for title in ("Reward", "Entropy", "Sampler against learner", "Sampled tokens"):
        figure = page.locator("figure", has=page.get_by_text(title, exact=True))
        figure.scroll_into_view_if_needed()  # what is not in sight is not drawn
        figure.locator(".entry").wait_for()
    figure = page.locator("figure", has=page.get_by_text("Memory", exact=True))
    figure.scroll_into_view_if_needed()
    figure.locator(".planned").first.wait_for()
    page.get_by_role("tab", name="Time").click()
    page.locator("figure .entry", has_text="sampling").wait_for()
    page.locator(".timeline th", has_text="waited for").first.wait_for()
    assert {"learner-0", "rollout-0"} <= {*page.locator(".timeline tbody th").all_text_contents()}
    page.get_by_role("tab", name="Gate").click()
    page.locator("canvas[data-cells]").wait_for()
    page.get_by_role("tab", name="Rollouts").click()
    page.locator(".hit").first.click()
    page.locator(".detail h2").wait_for()
    page.locator("label", has_text="Colour tokens by").locator("select").select_option("logprob")
    page.locator(".detail pre span").first.wait_for()
    opened.close()


def test_two_evaluations_of_a_prompt_side_by_side(browser: Any, served: Any, tmp_path: Path) -> None:
    folder = new_run(tmp_path, "hpt", steps=4)
    for step, text in ((0, "I do not know"), (4, "It is 5")):
        rollout = Rollout("sums#0", 0, np.array([5]), np.array([-0.5]), FinishReason.STOP, step, text)
        prompt = Prompt("mini/7", np.array([1]), "What is 2+3?", "5", "mini")
        outcome = Outcome.CORRECT if step else Outcome.WRONG
        group = Group(prompt, [rollout], [RewardResult(float(step > 0), outcome)])
        write_evaluation(folder.rollouts, step, [group])
    opened = Page(browser, served(tmp_path), "#view=rollouts")
    page = opened.page
    page.locator("label", has_text="Responses of").locator("select").select_option("eval")
    page.get_by_text("2 rollouts in 2 steps, all").wait_for()
    page.locator(".hit", has_text="step 4").click()
    page.locator("h2", has_text="sums#0").wait_for()
    page.locator("label", has_text="Compare with").locator("select").select_option(label="step 0")
    page.locator(".pairs").wait_for()
    assert page.locator(".pairs pre").all_text_contents() == ["It is 5", "I do not know"]
    assert page.locator(".pairs .tag").all_text_contents() == ["correct", "wrong"]
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_hostile_text_is_only_text(
    browser: Any, served: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    folder = new_run(tmp_path, "hpt")
    write_step(folder, 1, HOSTILE + "x" * 100_000)
    opened = Page(browser, served(tmp_path), "#view=rollouts&step=1&group=0", width, scheme)
    page = opened.page
    response = page.locator(".response:not(.demonstration) pre").first
    response.wait_for()
    text = response.text_content()
    assert text.startswith("</pre><script>window.broken = 1</script><img")
    assert "␛[31mred␛[0m [U+202E]evil xxx" in text
    assert len(text) > 100_000
    page.locator(".hit .preview").first.wait_for()
    assert page.evaluate("document.querySelectorAll('img, #view script').length") == 0
    for view in ("Summary", "Curves", "Gate", "Rollouts", "Time", "Configuration"):
        page.get_by_role("tab", name=view).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    opened.close()


def test_much_data_is_open_at_once(browser: Any, served: Any, tmp_path: Path) -> None:
    """200 runs of 5,000 steps, one of them with 1,000,000 rollouts in 500 steps."""
    first = new_run(tmp_path, "run-0", total=5000)
    random = np.random.default_rng(0)
    names = ["reward/mean", "policy/entropy", "rollout/length_mean", "optim/grad_norm", "time/step_s"]
    lines = [
        json.dumps({"step": step, **dict(zip(names, values, strict=True))}) + "\n"
        for step, values in enumerate(random.random((5000, len(names))).round(4).tolist(), 1)
    ]
    first.metrics.write_text("".join(lines))
    for i in range(1, 200):
        folder = new_run(tmp_path, f"run-{i}", total=5000)
        os.link(first.metrics, folder.metrics)
    write_step(first, 1)
    template = pq.read_table(dump_of(first.rollouts, 1))
    big = pa.concat_tables([template] * 84).slice(0, 2000)
    big = big.set_column(1, "group", pa.array(np.arange(2000, dtype=np.int32) // N))
    pq.write_table(big, dump_of(first.rollouts, 1), compression="zstd")
    for step in range(2, 501):
        os.link(dump_of(first.rollouts, 1), dump_of(first.rollouts, step))
    attempts = [
        json.dumps({"step": step, "prompt_id": f"q/{i}", "correct": i % 5, "rollouts": N, "aborted": 0})[:-1]
        + f', "rollout_weight": {float(i % 5 > 0)}, "demo_weight": {float(i % 5 == 0)}}}\n'
        for step in range(1, 501)
        for i in random.integers(7000, size=500).tolist()
    ]
    (first.root / "prompt_history.jsonl").write_text("".join(attempts))
    address = served(tmp_path)
    first_id = first.root.name
    took = {}
    for view, ready in {
        "curves": "figure .u-wrap",
        "gate": "canvas[data-cells]",
        "rollouts": ".hit",
        "config": "tbody tr, caption",
    }.items():
        begin = time.monotonic()
        runs = "" if view == "curves" else f"&runs={first_id}"
        opened = Page(browser, address, f"#view={view}{runs}")
        opened.page.wait_for_selector(ready)
        took[view] = round(time.monotonic() - begin, 2)
        opened.page.mouse.wheel(0, 3000)
        opened.close()
    print(took, os.getloadavg())
    room = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert max(took.values()) < OPEN_S * room, took
