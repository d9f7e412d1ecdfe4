"""What a copy of the training state in memory costs, against a checkpoint on disk and a bare copy of the bytes.

    python benchmarks/copies.py --out benchmarks/results/copies.json

Two real DeepSpeed ranks (ZeRO 2, bfloat16, AdamW) on one machine. In turns, in the same processes: `copy_s`, the
copy to the replicas of one node (`checkpoint.in_memory_every`); `checkpoint_s`, the ranks' files of a checkpoint,
hashed and durable on disk (the Hugging Face export is left out); `memcpy_s`, the same number of bytes from memory
to memory in one thread, which is the floor of every one of the copies that a piece goes through; `restore_s` and
`load_s`, the ways back. No other node is there, so nothing goes over a network.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import machine, versions, write
from material import ModelShape

from hpt_ray.checkpoint.replicas import Replicas
from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.schema import ClusterConfig, ModelConfig
from hpt_ray.config.training import LearnerConfig
from hpt_ray.driver.actors import start_ranks
from hpt_ray.learner.policy import LearnerSpec, LearnerWorker

LIMIT_S = 300.0
RANKS = 2
SHAPES = {"10M": ModelShape(256, 1024, 8, 4, 2, 8192), "100M": ModelShape(768, 3072, 12, 12, 4, 8192)}


async def sample(size: str, repeats: int, folder: Path) -> dict[str, Any]:
    model = SHAPES[size].save(folder / "model")
    learner = LearnerConfig(num_ranks=RANKS, num_cpus=1, zero_stage=2)
    spec = LearnerSpec(
        ModelConfig(path=str(model), random_init=True, dtype="bfloat16"), str(model), learner, 0, None, 1.0
    )
    cluster = Cluster.connect(ClusterConfig(address="local"))
    replicas = Replicas(timeout_s=LIMIT_S)
    try:
        await cluster.reserve([ResourceRequest("learner", RANKS, 1, 0.0)], timeout_s=LIMIT_S, name="copies")
        ranks = cluster.create("learner", LearnerWorker, [(i, RANKS, spec, None) for i in range(RANKS)])
        await start_ranks(ranks, LIMIT_S)
        times: dict[str, list[float]] = {
            f"{name}_s": [] for name in ("copy", "checkpoint", "memcpy", "restore", "load")
        }
        num_bytes = 0
        store = CheckpointStore(folder / "checkpoints", keep=1)
        for step in range(1, repeats + 2):
            begin = time.perf_counter()
            replicas.begin([ranks], RunState(step, step, {}), TemporaryDirectory(dir=folder))
            await replicas.settle()
            copied = time.perf_counter()
            assert replicas.step == step, replicas.problems
            saving = store.begin(step).resolve()
            await ranks.call("save", str(saving), timeout_s=LIMIT_S)
            path = store.commit(step, {}).path
            saved = time.perf_counter()
            # A copy holds the same numbers as the files.
            num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            source, target = np.ones((2, num_bytes), np.uint8)  # touched, so that no page is new
            prepared = time.perf_counter()
            np.copyto(target, source)
            plain = time.perf_counter()
            del source, target
            await replicas.restore([ranks])
            restored = time.perf_counter()
            await ranks.call("load", str(path.resolve()), timeout_s=LIMIT_S)
            loaded = time.perf_counter()
            spans = (copied - begin, saved - copied, plain - prepared, restored - plain, loaded - restored)
            for name, seconds in zip(times, spans, strict=True):
                times[name].append(seconds)
    finally:
        replicas.close()
        cluster.close()
    # The first is not counted: it starts the replicas and touches their memory for the first time.
    middle = {name: median(seconds[1:]) for name, seconds in times.items()}
    return {"model": size, "bytes": num_bytes, **middle, "raw": times}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    settings = {"ranks": RANKS, "zero_stage": 2, "dtype": "bfloat16", "repeats": arguments.repeats}
    report: dict[str, Any] = {
        "benchmark": "copies",
        "versions": versions(),
        "machine": machine(),
        "settings": settings,
    }
    samples = []
    for size in arguments.sizes:
        with TemporaryDirectory() as folder:
            samples.append(asyncio.run(sample(size, arguments.repeats, Path(folder))))
    result = {
        found["model"]: {
            "copy_over_checkpoint": found["copy_s"] / found["checkpoint_s"],
            "copy_over_memcpy": found["copy_s"] / found["memcpy_s"],
            "restore_over_load": found["restore_s"] / found["load_s"],
        }
        for found in samples
    }
    write(arguments.out, report | {"samples": samples, "result": result})


if __name__ == "__main__":
    main()
