"""What a weight sync costs: seconds against a bare broadcast of the same bytes, and memory in buckets.

    python benchmarks/sync.py --out benchmarks/results/sync.json

One process sends, as the learner's rank 0 does, and 1, 2 or 4 processes receive; all share this machine. Both
figures of a sample are taken in the same processes, in turns, through the same kind of group: `broadcast_s`, one
bare broadcast of all bytes at once from memory that is ready; `sync_s`, the sync's own `send` and `receive`:
packing, buckets, loading. A receiver here loads by copying every tensor into one of its own: a stand-in for
vLLM's model, which would not fit four times. The samples `vllm` are whole transactions (begin, transfer, commit)
from a real DeepSpeed learner to a real vLLM engine through Ray.

`peak_buckets` is the most memory that either side had beyond its model's tensors and what a group of this size
takes by itself (the kernel's count, sampled), over the size of the largest bucket.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from machine import machine, versions, write

from hpt_ray.weight_sync.buckets import TensorMeta, cut, size_of, unpack
from hpt_ray.weight_sync.group import Rendezvous, RendezvousPoint, TransferGroup, receive, send

HOST = "127.0.0.1"
LIMIT_S = 120.0
CPU = torch.device("cpu")
# Width and layers of Qwen2-shaped models with about so many parameters in all.
SHAPES = {"1M": (64, 8), "10M": (256, 8), "100M": (768, 11), "500M": (1536, 14)}
VOCABULARY = 8192


def metas_of(size: str) -> list[TensorMeta]:
    """The tensors of a model: embedding, attention, MLP and norms, in bfloat16 as they are sent at scale."""
    width, layers = SHAPES[size]
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, width)}
    for i in range(layers):
        shapes |= {f"{i}.{name}": (width, width) for name in ("q", "o")}
        shapes |= {f"{i}.{name}": (width // 4, width) for name in ("k", "v")}
        shapes |= {f"{i}.{name}": (4 * width, width) for name in ("gate", "up")}
        shapes |= {f"{i}.down": (width, 4 * width), f"{i}.norm1": (width,), f"{i}.norm2": (width,)}
    return [TensorMeta(name, "bfloat16", shape) for name, shape in shapes.items()]


def tensors_of(metas: list[TensorMeta], value: float) -> list[torch.Tensor]:
    return [torch.full(meta.shape, value, dtype=getattr(torch, meta.dtype)) for meta in metas]


class PeakMemory:
    """The most memory this process holds while it is open, beyond what it held at the beginning."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def num_bytes(self) -> int:
        return self._peak - self._before


def member(pipe: Connection, rendezvous: Rendezvous, rank: int, size: str, bucket_bytes: int) -> None:
    """One process: takes its turns as it is told, and answers with seconds and bytes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    metas = metas_of(size)
    buckets = list(cut(metas, bucket_bytes))
    tensors = tensors_of(metas, float(rank == 0))
    group = TransferGroup(rendezvous, rank, device=CPU)
    own = dict(zip((meta.name for meta in metas), tensors, strict=True))

    def load(buffer: torch.Tensor, bucket: list[TensorMeta]) -> None:
        for name, tensor in unpack(buffer, bucket):
            own[name].copy_(tensor)

    def sync() -> None:
        if rank == 0:
            send(group, buckets, tensors)
        else:
            receive(group, buckets, load)

    whole = torch.full((size_of(metas),), 7, dtype=torch.uint8)
    turns = {"broadcast": lambda: group.wait(group.broadcast(whole)), "sync": sync}
    for turn in iter(pipe.recv, None):
        if turn == "memory":
            with PeakMemory() as memory:
                sync()
            pipe.send(memory.num_bytes)
            continue
        begin = time.perf_counter()
        turns[turn]()
        pipe.send(time.perf_counter() - begin)
    pipe.send(all(bool((tensor == 1).all()) for tensor in tensors))


def sample(size: str, num_receivers: int, *, backend: str, bucket_mb: int, repeats: int) -> dict[str, Any]:
    """One size and number of receivers."""
    point = RendezvousPoint(HOST, timeout_s=LIMIT_S)
    rendezvous = point.open(1 + num_receivers, backend)
    metas = metas_of(size)
    buckets = list(cut(metas, bucket_mb << 20))
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(1 + num_receivers):
        here, there = context.Pipe()
        pipes.append(here)
        process = context.Process(
            target=member, args=(there, rendezvous, rank, size, bucket_mb << 20), daemon=True
        )
        process.start()
        processes.append(process)

    def turn(what: str | None) -> list[Any]:
        for pipe in pipes:
            pipe.send(what)
        answers = []
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(LIMIT_S):
                raise RuntimeError(f"member {rank} did not answer '{what}' within {LIMIT_S:.0f} s")
            answers.append(pipe.recv())
        return answers

    seconds: dict[str, list[float]] = {"broadcast": [], "sync": []}
    first_memory = turn("memory")  # buffers of the group itself are part of the first transfer, and stay
    for _ in range(repeats):
        for what in seconds:
            seconds[what].append(max(turn(what)))
    memory = turn("memory")
    arrived = turn(None)
    for process in processes:
        process.join(LIMIT_S)
    if not all(arrived):
        raise RuntimeError("a receiver did not get the sender's values")
    broadcast_s, sync_s = median(seconds["broadcast"]), median(seconds["sync"])
    largest = max(map(size_of, buckets))
    return {
        "parameters": sum(torch.Size(meta.shape).numel() for meta in metas),
        "bytes": size_of(metas),
        "receivers": num_receivers,
        "buckets": len(buckets),
        "largest_bucket_bytes": largest,
        "broadcast_s": broadcast_s,
        "sync_s": sync_s,
        "time_over_broadcast": sync_s / broadcast_s,
        "sender_peak_bytes": [first_memory[0], memory[0]],
        "receiver_peak_bytes": [max(first_memory[1:]), max(memory[1:])],
        "peak_buckets": max(memory) / largest,
        "raw": seconds,
    }


# -- the same with vLLM and DeepSpeed ----------------------------------------------------------------


def bare_broadcasts(_: Any, rendezvous: Rendezvous, rank: int, num_bytes: int, repeats: int) -> list[float]:
    """Run inside an actor: seconds of each broadcast of so many bytes."""
    group = TransferGroup(rendezvous, rank, device=CPU)
    whole = torch.full((num_bytes,), 7, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats + 1):  # the first one is not counted
        begin = time.perf_counter()
        group.wait(group.broadcast(whole))
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def save_model(size: str, folder: Path) -> None:
    """A Qwen2 of this size with random weights and a tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from hpt_ray.data.mini.tokenizer import build_tokenizer

    width, layers = SHAPES[size]
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


async def vllm_sample(
    size: str, *, backend: str, bucket_mb: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """One DeepSpeed rank and one vLLM engine: whole transactions against bare broadcasts between the two."""
    import ray

    from hpt_ray.cluster.runtime import Cluster, ResourceRequest
    from hpt_ray.config.schema import (
        ClusterConfig,
        LearnerConfig,
        ModelConfig,
        RolloutConfig,
        WeightSyncConfig,
    )
    from hpt_ray.learner.policy import LearnerSpec, LearnerWorker
    from hpt_ray.rollout.engine import EngineSpec
    from hpt_ray.rollout.worker import RolloutWorker
    from hpt_ray.weight_sync.transaction import WeightSync

    save_model(size, folder)
    model = ModelConfig(path=str(folder))
    rollout = RolloutConfig(kv_cache_gib=0.05, max_num_seqs=4)
    engine = EngineSpec(model, str(folder), rollout, max_model_len=64, seed=0)
    learner = LearnerSpec(model, str(folder), LearnerConfig(), 0, None, 1.0)
    room = Cluster.connect(ClusterConfig(address="local"))
    try:
        await room.reserve(
            [ResourceRequest("learner", 1, 1.0, 0.0), ResourceRequest("rollout", 1, 1.0, 0.0)],
            timeout_s=LIMIT_S,
            name="sync",
        )
        learners = room.create("learner", LearnerWorker, [(0, 1, learner, None)])
        workers = room.create("rollout", RolloutWorker, [(engine, None)], max_concurrency=100)
        (meeting,) = await learners.call("rendezvous", timeout_s=LIMIT_S)
        await learners.call("start", meeting, timeout_s=LIMIT_S)
        await workers.call("start", timeout_s=LIMIT_S)
        config = WeightSyncConfig(bucket_mb=bucket_mb, timeout_s=LIMIT_S)
        sync = WeightSync(learners, config, backend, workers_per_engine=1, keep_committed=False)
        reports = [await sync.push(version, workers) for version in range(1, repeats + 2)][1:]
        rendezvous = (point := RendezvousPoint(ray.util.get_node_ip_address(), timeout_s=LIMIT_S)).open(
            2, backend
        )
        actors = [*learners.actors, *workers.actors]
        broadcasts = await asyncio.gather(
            *(
                actor.__ray_call__.remote(bare_broadcasts, rendezvous, rank, reports[0].num_bytes, repeats)
                for rank, actor in enumerate(actors)
            )
        )
        del point
    finally:
        room.close()
    seconds = {
        "broadcast": [max(pair) for pair in zip(*broadcasts, strict=True)],
        "sync": [report.seconds for report in reports],
    }
    broadcast_s, sync_s = median(seconds["broadcast"]), median(seconds["sync"])
    return {
        "model": size,
        "bytes": reports[0].num_bytes,
        "tensors": reports[0].num_tensors,
        "receivers": 1,
        "broadcast_s": broadcast_s,
        "sync_s": sync_s,
        "time_over_broadcast": sync_s / broadcast_s,
        "raw": seconds,
    }


def samples(settings: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for size in settings.sizes:
        for num_receivers in settings.receivers:
            yield {"model": size} | sample(
                size,
                num_receivers,
                backend=settings.backend,
                bucket_mb=settings.bucket_mb,
                repeats=settings.repeats,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--vllm", nargs="*", default=["10M", "100M"], choices=list(SHAPES))
    parser.add_argument("--backend", default="gloo", choices=["gloo", "ipc"])
    parser.add_argument("--bucket-mb", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "sync",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            **{key: value for key, value in vars(arguments).items() if key != "out"},
            "backend": {"gloo": "gloo over loopback", "ipc": "ipc in host memory"}[arguments.backend],
            "receivers_of_samples": "stand-in: every tensor is copied into one of the receiver's own, bfloat16",
            "receivers_of_vllm": "a real vLLM engine, from one DeepSpeed rank, through Ray, float32",
            "threads": 1,
        },
    }
    measured = []
    for figures in samples(arguments):
        measured.append(figures)
        say(figures)
    engines = []
    for size in arguments.vllm:
        with TemporaryDirectory() as folder:
            engines.append(
                asyncio.run(
                    vllm_sample(
                        size,
                        backend=arguments.backend,
                        bucket_mb=arguments.bucket_mb,
                        repeats=arguments.repeats,
                        folder=Path(folder),
                    )
                )
            )
        say(engines[-1])
    report |= {"samples": measured, "vllm": engines, "result": result(measured, engines)}
    write(arguments.out, report)


def say(figures: dict[str, Any]) -> None:
    print(
        f"{figures['model']:>5} × {figures['receivers']}: broadcast {figures['broadcast_s']:.3f} s, "
        f"sync {figures['sync_s']:.3f} s, ratio {figures['time_over_broadcast']:.2f}, "
        f"peak {figures.get('peak_buckets', float('nan')):.2f} buckets",
        flush=True,
    )


def result(measured: list[dict[str, Any]], engines: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios by size and receivers, and the peak of memory where a model is many buckets."""
    many = [figures["peak_buckets"] for figures in measured if figures["buckets"] >= 4]
    return {
        "time_over_broadcast": {
            f"{figures['model']}x{figures['receivers']}": figures["time_over_broadcast"]
            for figures in measured
        },
        "time_over_broadcast_vllm": {figures["model"]: figures["time_over_broadcast"] for figures in engines},
        "peak_buckets": max(many) if many else None,
    }


if __name__ == "__main__":
    main()
