"""The driver's own time per step at the paper's size, and how it grows at 4 and 16 times that.

    python benchmarks/driver_scale.py --out benchmarks/results/driver_scale.json

The paper's size: 128 prompts × 8 rollouts × 8,192 tokens, two updates a step, micro-batches of 32,768 tokens. Larger
sizes have more prompts. `Driver.run` is the real one, on a real Ray with real records: drawing, requests, groups,
gate, samples, weighing, packing, weight sync, metrics, feedback log. Stand-ins replace only the remote actors: a
rollout worker returns answers of full length at once and one by one, which is most work for the driver; the
verifier and the learner ranks answer at once. A third of the prompts are unsolved.

The driver's own time is the CPU time of its process, Ray's threads in it included, between the ends of two steps.
The first step of a run is not counted. Writes one JSON with versions, machine, settings, raw figures by step,
and `result`: `driver_share` of the published step time, and `growth_exponent`, the slope of log time over log
size. The dump of rollouts to parquet can be switched off and is a figure of its own.

The published step time is LUFFY's for the same size and a 7B model, 77 hours on 8 GPUs for 500 steps (README of
ElliottYan/LUFFY): the shortest that is published; the paper itself names none.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from machine import machine, versions, write
from rich.console import Console

from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.data.mini import resolve
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.setup import prepare
from hpt_ray.learner.base import UpdateReport
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.reward.service import GradeItem
from hpt_ray.rollout.requests import GenerateRequest, Sampling
from hpt_ray.rollout.worker import Progress as EngineProgress
from hpt_ray.types import FinishReason, MicroBatch, Outcome, RewardResult, Rollout

PUBLISHED_STEP_S = 77 * 3600 / 500
NUM_ROLLOUTS = 8
CHARS_PER_TOKEN = 4
UNSOLVED = "0"  # reference answer of a prompt that no rollout solves
SEED = 0


class RecordedAnswers:
    """In place of a rollout worker: answers of the full length, at once, one by one."""

    def __init__(self, num_tokens: int):
        random = np.random.default_rng(SEED)
        self._token_ids = random.integers(0, 80, num_tokens, dtype=np.int32)
        self._logprobs = -random.random(num_tokens, dtype=np.float32)
        self._text = "x" * (CHARS_PER_TOKEN * num_tokens)
        self._ready: asyncio.Queue[Rollout] = asyncio.Queue()
        self._version = 0

    async def start(self) -> None:
        pass

    async def submit(self, requests: list[GenerateRequest], sampling: Sampling) -> None:
        for request in requests:
            for sample in request.samples:
                self._ready.put_nowait(
                    Rollout(
                        prompt_id=request.prompt_id,
                        sample=sample,
                        token_ids=self._token_ids,
                        logprobs=self._logprobs,
                        finish=FinishReason.STOP,
                        weight_version=self._version,
                        text=f"{sample}{self._text}",
                    )
                )

    async def rollouts(self) -> AsyncIterator[list[Rollout]]:
        while True:
            yield [await self._ready.get()]

    async def abort(self, prompt_ids: set[str]) -> int:
        return 0

    async def progress(self) -> EngineProgress:
        return EngineProgress(steps=0, busy=False, memory_mb=0.0)

    async def spans(self) -> list[Any]:
        return []

    async def sleep(self) -> None:
        pass

    async def wake(self, what: str) -> None:
        pass

    async def connect(self, place: dict) -> None:
        pass

    async def begin_update(self, check_each_name: bool) -> None:
        pass

    async def receive(self, update: dict) -> None:
        pass

    async def commit_update(self, version: int) -> list[str]:
        self._version = version
        return []


class RecordedResults:
    """In place of the verifier: every second answer to a prompt that can be solved is right."""

    async def counts(self) -> dict[str, int]:
        return {}

    async def grade(self, items: list[GradeItem]) -> list[RewardResult]:
        solved = [item.ground_truth != UNSOLVED and int(item.response[0]) % 2 == 0 for item in items]
        return [
            RewardResult(1.0, Outcome.CORRECT, "1") if s else RewardResult(0.0, Outcome.WRONG, "2")
            for s in solved
        ]


class RecordedUpdates:
    """In place of a learner rank: takes micro-batches, and steps, at once."""

    def __init__(self) -> None:
        self._num_tokens = 0

    def rendezvous(self) -> None:
        pass

    def start(self, meeting: None) -> None:
        pass

    def train_with(self, *_: Any) -> None:
        pass

    def forget_optimizer(self) -> None:
        pass

    def accumulate(self, micro_batch: MicroBatch, *_: Any) -> None:
        self._num_tokens += micro_batch.num_tokens

    def step(self, learning_rate: float) -> UpdateReport:
        report = UpdateReport(num_tokens=self._num_tokens, grad_norm=1.0)
        self._num_tokens = 0
        return report

    def weight_metas(self) -> list[Any]:
        return []

    def join_transfer(self, rendezvous: Any) -> None:
        pass

    def send_weights(self, bucket_bytes: int, keep: bool) -> None:
        pass

    def save(self, folder: str) -> list[str]:
        (Path(folder) / "state").write_text("recorded")
        return []

    def export(self, folder: str) -> list[str]:
        Path(folder).mkdir(exist_ok=True)  # by every rank
        (Path(folder) / "config.json").write_text("{}")
        return []


class RecordedCluster(Cluster):
    """A real Ray whose actors are the stand-ins."""

    num_tokens = 0

    def maker(
        self, kind: str, actor_class: type, arguments: Callable[[int], tuple], **options: Any
    ) -> Callable[[int], Any]:
        stand_ins: dict[str, tuple[type, tuple]] = {
            "rollout": (RecordedAnswers, (self.num_tokens,)),
            "verifier": (RecordedResults, ()),
            "learner": (RecordedUpdates, ()),
        }
        stand_in, its_arguments = stand_ins[kind]
        return super().maker(kind, stand_in, lambda i: its_arguments, **options)


class StepClock(Progress):
    """Notes the process's times at the end of every step."""

    def __init__(self, total: int):
        super().__init__(total, console=Console(file=open(os.devnull, "w")))  # noqa: SIM115
        self.ends: list[tuple[float, float]] = []

    def finish_step(self, step: int, metrics: Mapping[str, Any], *, keep: bool = False) -> None:
        super().finish_step(step, metrics, keep=keep)
        self.ends.append((time.process_time(), time.perf_counter()))


@dataclass(frozen=True)
class Size:
    factor: int
    steps: int  # the first is not counted
    dumps: bool = False


def sizes(factors: list[int]) -> list[Size]:
    """At least one step of each is counted, more of the small ones."""
    plain = [Size(factor, steps=2 + (factor < 16) + (factor < 4)) for factor in factors]
    return [*plain, Size(1, steps=4, dumps=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=128, help="prompts of a step at size 1")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of an answer")
    parser.add_argument("--workers", type=int, default=8, help="stand-ins for rollout workers")
    parser.add_argument("--ranks", type=int, default=8, help="stand-ins for learner ranks")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16], help="at least 1 and another")
    parser.add_argument("--profile", type=int, default=0, help="functions to list by own time, at size 1")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "driver_scale",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            **{name: value for name, value in vars(arguments).items() if name != "out"},
            "group_size": NUM_ROLLOUTS,
            "published_step_s": PUBLISHED_STEP_S,
            "seed": SEED,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPT_RAY_CACHE"] = f"{folder}/cache"
        report |= measure_all(arguments, Path(folder))
    write(arguments.out, report)


def measure_all(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": arguments.workers + arguments.ranks})
    data = folder / "prompts.parquet"
    wanted = sizes(arguments.factors)
    write_prompts(data, max(size.factor for size in wanted) * arguments.prompts)
    RecordedCluster.num_tokens = arguments.tokens
    configs = [config_of(arguments, size, data, folder / "runs") for size in wanted]
    cluster = RecordedCluster.connect(configs[0].cluster)
    try:
        raw = [
            {"factor": size.factor, "dumps": size.dumps, **measure(config, cluster)}
            for size, config in zip(wanted, configs, strict=True)
        ]
        profile = hot_spots(configs[0], cluster, arguments.profile) if arguments.profile else []
    finally:
        cluster.close()
    return {"raw": {"runs": raw, "profile": profile}, "result": result(raw)}


def write_prompts(path: Path, count: int) -> None:
    """Prompts of about 150 tokens and demonstrations of about 1,000; every third prompt is unsolved."""
    samples = (
        make_row(
            f"Start with {i}. " + "Add 12. Subtract 9. " * 14,
            "58+12=70. 70-9=61. " * 50,
            UNSOLVED if i % 3 == 0 else "1",
            data_source="recorded",
            extra_info={"index": i},
        )
        for i in range(count)
    )
    write_rows(path, samples, {"index": pa.int64()})


def config_of(arguments: argparse.Namespace, size: Size, data: Path, runs: Path) -> Config:
    words = {
        "prompts_per_step": arguments.prompts * size.factor,
        "group_size": NUM_ROLLOUTS,
        "max_tokens_per_micro_batch": max(32768, 2 * arguments.tokens),
        "updates_per_step": 2,
        "run.steps": size.steps,
        "run.seed": SEED,
        "run.dir": runs,
        "model.path": "mini:t-fresh",  # never loaded
        "data.train": f"[{data}]",
        "data.template": "plain",
        "data.max_response_tokens": max(1024, arguments.tokens),
        "rollout.num_workers": arguments.workers,
        "reward.function": "boxed",
        "algorithm.name": "hpt",
        "learner.num_ranks": arguments.ranks,
        "observe.samples_every": 0,
        "observe.rollouts_every": int(size.dumps),
        "cluster.address": "local",
    }
    return load_config(None, [f"{name}={value}" for name, value in words.items()])


def measure(config: Config, cluster: Cluster) -> dict[str, Any]:
    """One run of the driver; its seconds by step."""
    prepared = prepare(config, str(resolve("mini:tokenizer")))
    with StepClock(config.run.steps) as clock:
        driver = Driver(config, prepared, RunFolder.create(config.run.dir, "run"), clock, quiet=True)
        summary = asyncio.run(driver.run(cluster))
    if summary is None or summary["failures"] or summary["faults"]:
        raise RuntimeError(f"not an undisturbed run: {summary}")
    pairs = list(pairwise(clock.ends))
    return {
        "prompts": config.prompts_per_step,
        "driver_s": [after[0] - before[0] for before, after in pairs],
        "wall_s": [after[1] - before[1] for before, after in pairs],
        "memory_gib": psutil.Process().memory_info().rss / 2**30,
    }


def hot_spots(config: Config, cluster: Cluster, count: int) -> list[dict[str, Any]]:
    """The functions of the main thread with the most own time over a whole run."""
    profiler = cProfile.Profile()
    profiler.runcall(measure, config, cluster)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    longest = sorted(stats.items(), key=lambda item: -item[1][2])[:count]
    return [
        {"function": f"{file}:{line}:{name}", "calls": calls, "own_s": own, "total_s": total}
        for (file, line, name), (_, calls, own, total, _) in longest
    ]


def result(raw: list[dict[str, Any]]) -> dict[str, Any]:
    plain = {run["factor"]: fmean(run["driver_s"]) for run in raw if not run["dumps"]}
    (dumped_s,) = [fmean(run["driver_s"]) for run in raw if run["dumps"]]
    slope, _ = np.polyfit(np.log(list(plain)), np.log(list(plain.values())), 1)
    return {
        "driver_s": plain,
        "driver_share": plain[1] / PUBLISHED_STEP_S,
        "growth_exponent": float(slope),
        "rollout_dump_s": dumped_s - plain[1],
    }


if __name__ == "__main__":
    main()
