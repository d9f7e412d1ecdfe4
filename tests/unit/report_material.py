"""Small run folders for the tests of the report, written by the classes that write real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.config.load import dump_config, load_config
from hpt_ray.driver.step_metrics import Pairs, rollout_metrics
from hpt_ray.evaluation.results import PromptResult, write_results
from hpt_ray.observe.metrics import complete_line, summarize_evaluations
from hpt_ray.observe.prompt_history import PromptHistory
from hpt_ray.observe.rollout_dump import write_rollouts
from hpt_ray.observe.run_folder import RunFolder, write_json
from hpt_ray.types import Decision, Demonstration, FinishReason, Group, Outcome, Prompt, RewardResult, Rollout

NUM_PROMPTS, PER_STEP, N = 12, 4, 4
NASTY = "</pre><script>alert('x')</script> \x00\x1b[31m \ud800 ‮ $\\boxed{4}$ & \"q\" "


def group_of(prompt_id: str, right: Sequence[bool], text: str = "1+1=2. \\boxed{2}") -> Group:
    """One prompt with a demonstration and as many rollouts as `right` has values."""
    ids = np.array([5, 6, 2], np.int32)
    demonstration = Demonstration(ids, "It is 2.")
    prompt = Prompt(prompt_id, ids, f"What is 1+1? ({prompt_id})", "2", "mini", demonstration)
    rollouts = [
        Rollout(prompt_id, i, ids, np.full(3, -0.1, np.float32), FinishReason.STOP, 0, f"{text} {i}")
        for i in range(len(right))
    ]
    results = [
        RewardResult(1.0, Outcome.CORRECT, "2") if r else RewardResult(0.0, Outcome.WRONG, "3") for r in right
    ]
    return Group(prompt, rollouts, results)


def make_run(
    parent: Path,
    *words: str,
    steps: int = 6,
    rollouts: bool = True,
    seed: int = 0,
    done: bool = True,
    text: str = "1+1=2. \\boxed{2}",
    extra: dict[str, Any] | None = None,
) -> Path:
    """A run of `steps` steps, in which prompt i is first solved at its attempt i // 4. `words` set keys."""
    run = ["run.name=demo", f"run.dir={parent}", f"run.seed={seed}", f"run.steps={steps or 1}"]
    config = load_config(None, ["model.path=mini:t", *run, *words])
    folder = RunFolder.create(parent, config.run.name)
    dump_config(config, folder.config)
    log = PromptHistory(folder.root / "prompt_history.jsonl")
    if steps:
        first = {"step": 0, "eval/easy/mean": 0.0, "eval/hard/mean": 0.0, "time/evaluation_s": 0.5}
        folder.append_metrics(complete_line(first))
    for step in range(1, steps + 1):
        pairs = _pairs(step, rollouts, text)
        log.append(step, pairs)
        write_rollouts(folder.rollouts, step, pairs)
        folder.append_metrics(complete_line(_line(step, steps, seed, pairs)) | (extra or {}))
    if done:
        lines = folder.read_metrics()
        summary = {
            "steps": steps,
            "wall_s": 61.0,
            "evaluations": summarize_evaluations(lines),
            "failures": {},
        }
        write_json(folder.summary, summary)
    return folder.root


def _pairs(step: int, rollouts: bool, text: str) -> Pairs:
    pairs = []
    for slot in range(PER_STEP):
        number = ((step - 1) * PER_STEP + slot) % NUM_PROMPTS
        attempt = ((step - 1) * PER_STEP + slot) // NUM_PROMPTS
        num = N if rollouts else 0
        solved = min(num, max(0, attempt - number // 4 + 1))
        group = group_of(f"mini/{number}", [i < solved for i in range(num)], text)
        weights = (1.0, 0.0) if solved else (0.0, 1.0)
        pairs.append((group, Decision(*weights, solved, num, "solved" if solved else "unsolved")))
    return pairs


def _line(step: int, steps: int, seed: int, pairs: Pairs) -> dict[str, Any]:
    share = step / steps
    line: dict[str, Any] = {
        "step": step,
        **rollout_metrics(pairs, 1.0),
        "selection/demo_prompt_ratio": float(np.mean([d.demo_weight > 0 for _, d in pairs])),
        "policy/entropy": 0.5 - 0.3 * share,
        "policy/kl_old": 1e-13,
        "optim/grad_norm": float("nan") if step == 2 else 1.0 / step,
        "optim/lr": 1e-4,
        "learner/tokens_per_s": 100.0,
        "learner/skipped_updates": int(step == 2),
        "time/step_s": 2.0,
        "time/rollout_s": 1.0,
        "time/learner_s": 0.5,
        "time/sync_s": 0.1,
    }
    if step % 2 == 0:
        line |= {"eval/easy/mean": share, "eval/hard/mean": share / 2 + 0.01 * seed, "time/evaluation_s": 0.5}
    return line


def evaluate(folder: Path, correct: Sequence[int], n: int = 8, benchmark: str = "mini-chain") -> Path:
    """The folder of a finished evaluation: one prompt for each number of right answers."""
    rows = [
        PromptResult(
            benchmark, f"q/{i}", "mini", None, f"h{i}", n, c, n - c, 0, 0, 0, 0, mean_tokens=9.0, truncated=0
        )
        for i, c in enumerate(correct)
    ]
    folder.mkdir(parents=True)
    write_results(folder, rows)
    return folder


def saved_of(page: Path) -> dict[str, Any]:
    """The data of a saved page: one block without any `<`, so that nothing in it ends the block or begins another."""
    text = page.read_text(encoding="utf-8")
    block = text.partition('<script type="application/json" id="saved">')[2].partition("</script>")[0]
    assert "<" not in block
    assert block.isascii()
    assert block.isprintable()
    return json.loads(block)
