"""What the ZeRO stages cost and save: time of an update, and the fullest moment of a rank.

    python benchmarks/zero.py --out benchmarks/results/zero.json

Two real DeepSpeed ranks (AdamW) on one machine, fresh ones for each stage, with the same updates of the same
micro-batches. Stages 0 and 1 sum a whole gradient on each rank and meet once an update; 2 and 3 meet in every
micro-batch and keep a share. `update_s` is timed by the caller, from the first micro-batch sent to the step's
report; `peak_gib` is a rank's most resident memory (VmHWM, Linux only), `planned_gib` what the plan of a run
says. Buckets are as large beside this model as DeepSpeed's default beside 8·10⁹ parameters. No network is
between the ranks: gloo copies through memory.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from machine import machine, process_bytes, versions, write
from material import Lengths, ModelShape, SampleShape

from hpt_ray.algorithms import make_estimator
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import ClusterConfig, Config
from hpt_ray.driver.actors import start_ranks
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.policy import LearnerSpec, LearnerWorker
from hpt_ray.tools.plan.memory import learner_memory
from hpt_ray.tools.plan.shape import find_shape

LIMIT_S = 600.0
RATE = 1e-4
RANKS = 2
STAGES = (0, 1, 2, 3)
SHAPE = ModelShape(768, 3072, 12, 12, 4, 8192)  # 10⁸ parameters
MICRO_BATCH_TOKENS = 512
BUCKET = 6_000_000  # numbers
SAMPLES = SampleShape(4, 8, Lengths(24, 0.3, 48), Lengths(64, 0.7, 256), SHAPE.vocabulary)


def configured(folder: Path, stage: int, dtype: str) -> Config:
    """The run that these ranks would belong to."""
    return load_config(
        None,
        [
            f"model.path={folder}",
            "model.random_init=true",
            f"model.dtype={dtype}",
            f"learner.num_ranks={RANKS}",
            f"learner.zero_stage={stage}",
            f"learner.deepspeed={{zero_optimization: {{reduce_bucket_size: {BUCKET}}}}}",
            f"max_tokens_per_micro_batch={MICRO_BATCH_TOKENS}",
        ],
    )


def peak_bytes(_: Any) -> int:
    """The most memory that this actor's process has held."""
    return process_bytes("VmHWM")


async def sample(stage: int, dtype: str, updates: int, folder: Path) -> dict[str, Any]:
    """One stage: its updates, the first of which is not counted."""
    config = configured(SHAPE.save(folder), stage, dtype)
    shape = find_shape(config.model, str(folder))
    assert shape is not None
    estimator = make_estimator("grpo")
    spec = LearnerSpec(config.model, str(folder), config.learner, 0, estimator, 1.0)
    cluster = Cluster.connect(ClusterConfig(address="local"))
    try:
        await cluster.reserve([ResourceRequest("learner", RANKS, 1, 0.0)], timeout_s=LIMIT_S, name="zero")
        ranks = cluster.create("learner", LearnerWorker, [(i, RANKS, spec, None) for i in range(RANKS)])
        await start_ranks(ranks, LIMIT_S)
        learner = LearnerGroup(
            ranks,
            estimator,
            batch=SAMPLES.batch,
            max_tokens_per_micro_batch=MICRO_BATCH_TOKENS,
            timeout_s=LIMIT_S,
        )
        seconds, tokens = [], []
        for update in range(updates + 1):
            prompts = SAMPLES.draw(update)
            begin = time.perf_counter()
            for prompt in prompts:
                learner.add(prompt)
            tokens.append((await learner.finish(RATE)).num_tokens)
            seconds.append(time.perf_counter() - begin)
        peaks = await asyncio.gather(*(rank.__ray_call__.remote(peak_bytes) for rank in ranks.actors))
    finally:
        cluster.close()
    return {
        "zero_stage": stage,
        "update_s": median(seconds[1:]),
        "peak_gib": max(peaks) / 2**30,
        "planned_gib": learner_memory(config, shape).gib,
        "raw": {"seconds": seconds, "tokens": tokens, "peak_bytes": peaks},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--updates", type=int, default=5)
    arguments = parser.parse_args()
    settings = {
        "ranks": RANKS,
        "dtype": arguments.dtype,
        "updates": arguments.updates,
        "max_tokens_per_micro_batch": MICRO_BATCH_TOKENS,
        "reduce_bucket_size": BUCKET,
    }
    report: dict[str, Any] = {
        "benchmark": "zero",
        "versions": versions(),
        "machine": machine(),
        "settings": settings,
    }
    samples = []
    for stage in STAGES:
        with TemporaryDirectory() as folder:
            samples.append(asyncio.run(sample(stage, arguments.dtype, arguments.updates, Path(folder))))
    once = next(found for found in samples if found["zero_stage"] == 1)
    result = {
        f"stage {found['zero_stage']} over 1": {
            "time": found["update_s"] / once["update_s"],
            "peak_gib": found["peak_gib"] - once["peak_gib"],
            "planned_gib": found["planned_gib"] - once["planned_gib"],
        }
        for found in samples
    }
    write(arguments.out, report | {"samples": samples, "result": result})


if __name__ == "__main__":
    main()
