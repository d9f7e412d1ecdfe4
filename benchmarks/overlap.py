"""How much of a step's work overlaps: the streaming step against one that waits for all rollouts.

    python benchmarks/overlap.py --out benchmarks/results/overlap.json

One core generates, one trains, and both have about as much to do. Steps take turns in one run: in every other
step the driver waits for the last group before the first goes to the learner, as a synchronous loop does. The
busy times are those of the timeline (decoding; backward passes and optimizer step). `step_over_max` is the
median over steps of step time by the larger busy time: 1 is perfect. Both cores also carry the driver, the
verifier and Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from drive import drive
from machine import machine, versions, write

from hpt_ray.driver.batches import Batch
from hpt_ray.driver.driver import Driver
from hpt_ray.driver.step_metrics import Pairs
from hpt_ray.reward.groups import GroupStream
from hpt_ray.types import Group

WARM_UP = 2  # steps that are not counted
# Half of all answers are right, whatever the model does: nearly every group has something to learn from.
REWARD = "def grade(response, ground_truth):\n    return len(response) % 2 == 0\n"


class TurnsDriver(Driver):
    """Every other step waits for all of its groups."""

    async def train_step(self, batch: Batch) -> tuple[dict[str, Any], Pairs]:
        if is_synchronous(batch.step):
            batch = replace(batch, stream=WaitingStream(batch.stream))
        return await super().train_step(batch)


class WaitingStream(GroupStream):
    """Gives out its groups once the last one is there."""

    def __init__(self, stream: GroupStream):
        super().__init__()
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[Group]:
        for group in await self._stream.all():
            yield group


def is_synchronous(step: int) -> bool:
    return step % 2 == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=14, help="half of them synchronous")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--model", default="mini:w-fresh")
    parser.add_argument("--max-num-seqs", type=int, default=96)
    parser.add_argument("--response-tokens", type=int, default=64)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "overlap", "versions": versions(), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        words = settings(arguments, Path(folder))
        lines = asyncio.run(train(words, Path(folder)))
    steps = [figures(line) for line in lines if line["step"] > WARM_UP]
    report |= {
        "settings": {"overrides": without(words, folder), "seed": 0},
        "raw": steps,
        "result": result(steps),
    }
    write(arguments.out, report)


def without(words: list[str], folder: str) -> list[str]:
    """The words without a folder that is gone by now."""
    return [word.replace(f"{folder}/", "") for word in words]


def settings(arguments: argparse.Namespace, folder: Path) -> list[str]:
    reward_function = folder / "parity.py"
    reward_function.write_text(REWARD, encoding="utf-8")
    return [
        f"run.steps={arguments.steps}",
        f"prompts_per_step={arguments.prompts}",
        "group_size=8",
        "max_tokens_per_micro_batch=2048",
        f"model.path={arguments.model}",
        "data.train=[mini:train]",
        "data.template=plain",
        "data.add_bos=true",
        "data.max_prompt_tokens=40",
        f"data.max_response_tokens={arguments.response_tokens}",
        f"rollout.max_num_seqs={arguments.max_num_seqs}",
        "algorithm.name=grpo",
        f"reward.function=python:{reward_function}:grade",
        "reward.require_finished=false",
        "learner.gradient_checkpointing=true",
        # So small that lengths stay what they are at the start.
        "learner.learning_rate=1.0e-7",
        "observe.samples_every=0",
        "observe.rollouts_every=0",
        "cluster.address=local",
    ]


async def train(words: list[str], folder: Path) -> list[dict[str, Any]]:
    return (await drive(TurnsDriver, words, folder)).folder.read_metrics()


def figures(line: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step."""
    step_s = line["time/step_s"]
    rollout_s, learner_s = line["rollout/busy_share"] * step_s, line["learner/busy_share"] * step_s
    return {
        "step": line["step"],
        "synchronous": is_synchronous(line["step"]),
        "step_s": step_s,
        "rollout_busy_s": rollout_s,
        "learner_busy_s": learner_s,
        "sync_s": line["time/sync_s"],
        "overlap_share": line["time/overlap_share"],
        "bubble_share": line["time/bubble_share"],
        "over_max": step_s / max(rollout_s, learner_s),
    }


def result(steps: list[dict[str, Any]]) -> dict[str, Any]:
    streaming = [step for step in steps if not step["synchronous"]]
    waiting = [step for step in steps if step["synchronous"]]
    return {
        "step_over_max": median(step["over_max"] for step in streaming),
        "synchronous_over_max": median(step["over_max"] for step in waiting),
        "learner_over_rollout": median(step["learner_busy_s"] / step["rollout_busy_s"] for step in streaming),
        "speedup": median(s["step_s"] for s in waiting) / median(s["step_s"] for s in streaming),
    }


if __name__ == "__main__":
    main()
