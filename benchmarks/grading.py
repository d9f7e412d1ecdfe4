"""How fast and how steadily answers are graded.

    python benchmarks/grading.py --out benchmarks/results/grading.json [--data ../shared/data]

Measures: start-up; cost per answer of each reward function; throughput on long worked answers that hold real
reference answers; cost and memory from 1,000 to 100,000 answers; a fuzz of 10,000 hostile answers. Reads the
data folder, writes one JSON with versions, machine, settings, raw figures and `result`: the targets and
whether they are met.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from machine import machine, versions, write

from hpt_ray.reward.functions.extract import last_boxed
from hpt_ray.reward.pool import Pool, Task

NUM_PROCESSES = 2
CHARS_PER_TOKEN = 4  # of English with LaTeX, about
RESPONSE_TOKENS = 8000
REPEATS = 5
FUZZ_ANSWERS = 10_000
FUZZ_BATCH = 100
FUZZ_TIMEOUT_S = 1.0
FUZZ_MEMORY_MB = 1024
FLAT_SIZES = (1_000, 10_000, 100_000)


def references(data: Path) -> list[str]:
    """The reference answers of the five mathematics benchmarks, as they would stand in a box."""
    answers = []
    for file in sorted((data / "eval").glob("*.json")):
        for row in json.loads(file.read_text()):
            boxed = last_boxed(row["answer"])
            answers.append(row["answer"].replace("$", "") if boxed is None else boxed)
    return answers


def reasoning(data: Path) -> str:
    """Real worked solutions, end to end: what fills a long response before its answer."""
    rows = (data / "gsm8k" / "train.jsonl").read_text().splitlines()[:500]
    return "\n".join(json.loads(row)["answer"] for row in rows)


def long_tasks(answers: list[str], text: str, count: int) -> list[Task]:
    """A third each: the reference as it is, the reference in other brackets, another prompt's answer."""
    draw = random.Random(0)
    length = RESPONSE_TOKENS * CHARS_PER_TOKEN
    tasks = []
    for number in range(count):
        truth = draw.choice(answers)
        answer = [truth, f"{{{truth}}}", draw.choice(answers)][number % 3]
        start = draw.randrange(len(text) - length)
        tasks.append(Task("math", f"{text[start : start + length]}\nSo it is \\boxed{{{answer}}}.", truth))
    return tasks


def seconds(pool: Pool, tasks: list[Task]) -> tuple[float, Counter[str]]:
    started = time.perf_counter()
    results = pool.grade(tasks)
    return time.perf_counter() - started, Counter(result.outcome.value for result in results)


def resident_mb() -> float:
    """The memory of the largest grading process."""
    return max(child.memory_info().rss for child in psutil.Process().children()) / 2**20


def startup() -> dict:
    boxed = Task("boxed", r"\boxed{1}", "1")
    figures: dict = {}
    for name, task in {"boxed": boxed, "math": Task("math", r"\boxed{\frac12}", "0.5")}.items():
        started = time.perf_counter()
        with Pool(1) as pool:
            figures.setdefault("construct_s", time.perf_counter() - started)
            pool.grade([task])
            figures[f"first_result_{name}_s"] = time.perf_counter() - started
    return figures


def cost_per_reward_function(text: str) -> dict:
    """Milliseconds per answer of 8,000 tokens, through one process, transport included."""
    body = text[: RESPONSE_TOKENS * CHARS_PER_TOKEN]
    tasks = {
        "boxed": Task("boxed", body + r"\boxed{12}", "12"),
        "exact": Task("exact", body, "12"),
        "gsm8k": Task("gsm8k", body + "\n#### 12", "12"),
        "choice": Task("choice", body + r"\boxed{B}", "B"),
        "math, equal text": Task("math", body + r"\boxed{\frac12}", r"\frac{1}{2}"),
        "math, math-verify": algebra(body, 1),
    }
    figures = {}
    for name, task in tasks.items():
        with Pool(1, preload=[task.reward_function]) as pool:
            pool.grade([task] * 10)
            count = 300 if "verify" in name else 3000
            figures[name] = []
            for number in range(REPEATS):
                # An answer is compared once; each of these is another one.
                if "verify" in name:
                    tasks = [algebra(body, 2 + number * count + i) for i in range(count)]
                else:
                    tasks = [task] * count
                figures[name].append(seconds(pool, tasks)[0] / count * 1000)
    return figures


def algebra(body: str, number: int) -> Task:
    """An answer of its own that only math-verify can tell to be correct."""
    return Task("math", body + rf"\boxed{{\frac{{x}}{{{number}}}}}", rf"\frac{{1}}{{{number}}}x")


def throughput(answers: list[str], text: str) -> dict:
    tasks = long_tasks(answers, text, 1024)
    runs, outcomes = [], Counter()
    for _ in range(REPEATS):
        with Pool(NUM_PROCESSES) as pool:  # start-up counts
            elapsed, outcomes = seconds(pool, tasks)
        runs.append(elapsed)
    return {"seconds": runs, "outcomes": dict(outcomes)}


def flatness(answers: list[str]) -> list[dict]:
    """Mostly cheap answers and one in twenty for math-verify, as in a run that has learned the format."""
    draw = random.Random(1)
    figures = []
    for size in FLAT_SIZES:
        tasks = []
        for number in range(size):
            truth = draw.choice(answers)
            answer = draw.choice(answers) if number % 20 == 0 else truth
            tasks.append(Task("math", f"Thus \\boxed{{{answer}}}", truth))
        with Pool(NUM_PROCESSES, preload=["math"]) as pool:
            pool.grade(tasks[:100])
            elapsed, _ = seconds(pool, tasks)
            figures.append(
                {"answers": size, "ms_per_answer": elapsed / size * 1000, "resident_mb": resident_mb()}
            )
    return figures


SCRAPS = st.sampled_from(
    r"""
    \frac \sqrt ^ _ { } ( ) [ ] \left( \right) \{ \} & \\ , ; = < \le \in \cup + - * / ! % $ \boxed{ \text{
    \pi \infty \int \sum_{k=1}^{n} \lim \log \sin \begin{pmatrix} \end{pmatrix} \pm \binom 9^{9^{9}} x y i e
    0 1 2 10 0.5 1e999 ** // lambda: __import__('os') \def\x{\x\x} \0 \input{x} \operatorname{f} \vec
    """.split()  # noqa: SIM905  # readable as text, not as a list of 60 literals
)
ANSWERS = st.one_of(
    st.lists(SCRAPS, max_size=25).map(" ".join),
    st.lists(SCRAPS, max_size=25).map("".join),
    st.recursive(
        st.sampled_from(["x", "1", "2", "10", r"\pi", "0"]),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
            st.tuples(inner, inner).map(lambda pair: rf"{{{pair[0]}}}^{{{pair[1]}}}"),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]}, {pair[1]})"),
            inner.map(lambda one: rf"\sqrt{{{one}}}"),
            inner.map(lambda one: f"({one})!"),
        ),
        max_leaves=12,
    ),
    st.text(max_size=60),
    st.tuples(SCRAPS, st.integers(1, 2000)).map(lambda pair: pair[0] * pair[1]),
)
RESPONSES = st.tuples(st.integers(0, 9), ANSWERS).map(
    lambda pair: f"So \\boxed{{{pair[1]}}}" if pair[0] else f"So the answer is {pair[1]}"
)
CONTROL = Task("math", r"\boxed{\frac{2}{4}}", "0.5")


def fuzz(answers: list[str]) -> dict:
    outcomes: Counter[str] = Counter()
    figures = {"answers": 0, "longest_batch_s": 0.0, "resident_mb": 0.0, "control_failures": 0, "errors": []}
    truths = [*answers[::40], r"\frac{x^2-1}{x-1}", "(1,2)", r"\text{east}"]
    started = time.perf_counter()
    with Pool(
        NUM_PROCESSES, timeout_s=FUZZ_TIMEOUT_S, memory_mb=FUZZ_MEMORY_MB, preload=["math", "math:lenient"]
    ) as pool:
        pool.grade([CONTROL])

        @seed(0)
        @settings(
            max_examples=FUZZ_ANSWERS // FUZZ_BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(RESPONSES, min_size=FUZZ_BATCH, max_size=FUZZ_BATCH), st.sampled_from(truths))
        def grade_batch(responses: list[str], truth: str) -> None:
            reward_functions = ["math", "math:lenient"]
            tasks = [Task(reward_functions[i % 2], response, truth) for i, response in enumerate(responses)]
            began = time.perf_counter()
            results = pool.grade([*tasks, CONTROL])
            figures["longest_batch_s"] = max(figures["longest_batch_s"], time.perf_counter() - began)
            figures["resident_mb"] = max(figures["resident_mb"], resident_mb())
            figures["control_failures"] += not results.pop().correct
            figures["answers"] += len(results)
            outcomes.update(result.outcome.value for result in results)
            figures["errors"] += [v.detail for v in results if v.outcome.value == "error"]

        grade_batch()
        figures["processes_replaced"] = pool.num_replaced
    return {
        **figures,
        "errors": Counter(figures["errors"]).most_common(20),
        "outcomes": dict(outcomes),
        "seconds": time.perf_counter() - started,
    }


def targets(raw: dict) -> dict:
    """Each target with the figure it is about, and whether it is met."""
    median_s = statistics.median(raw["throughput"]["seconds"])
    boxed_ms = statistics.median(raw["cost_ms_per_reward_function"]["boxed"])
    costs = [figure["ms_per_answer"] for figure in raw["flatness"]]
    fuzz_figures = raw["fuzz"]
    return {
        "1,024 answers of 8,000 tokens in under 20 s (median)": [median_s, median_s < 20],
        "boxed under 0.2 ms per answer": [boxed_ms, boxed_ms < 0.2],
        "cost per answer at 100,000 within 1.5 of that at 1,000": [
            costs[-1] / costs[0],
            costs[-1] < 1.5 * costs[0],
        ],
        "fuzz: all answers graded, the control answers right": [
            fuzz_figures["answers"],
            fuzz_figures["answers"] >= FUZZ_ANSWERS and fuzz_figures["control_failures"] == 0,
        ],
        "fuzz: memory of a process within its bound (MB)": [
            fuzz_figures["resident_mb"],
            fuzz_figures["resident_mb"] < FUZZ_MEMORY_MB,
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    default_data = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default_data, help="folder with eval/ and gsm8k/")
    arguments = parser.parse_args()
    answers, text = references(arguments.data), reasoning(arguments.data)
    report = {
        "benchmark": "grading",
        "versions": versions("math-verify", "latex2sympy2_extended", "sympy"),
        "machine": machine(),
        "settings": {
            "num_processes": NUM_PROCESSES,
            "response_tokens": RESPONSE_TOKENS,
            "chars_per_token": CHARS_PER_TOKEN,
            "repeats": REPEATS,
            "fuzz": {"timeout_s": FUZZ_TIMEOUT_S, "memory_mb": FUZZ_MEMORY_MB, "batch": FUZZ_BATCH},
        },
    }
    raw = {
        "startup": startup(),
        "cost_ms_per_reward_function": cost_per_reward_function(text),
        "throughput": throughput(answers, text),
        "flatness": flatness(answers),
        "fuzz": fuzz(answers),
    }
    checks = targets(raw)
    report |= {"raw": raw, "result": {"passed": all(met for _, met in checks.values()), "targets": checks}}
    write(arguments.out, report)


if __name__ == "__main__":
    main()
