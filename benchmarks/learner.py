"""What the learner costs: speed against a bare PyTorch loop, padding, memory of log π and entropy.

    python benchmarks/learner.py --out benchmarks/results/learner.json

Speed: whole updates of the real learner, one DeepSpeed rank in a Ray actor, timed by its caller from the
first micro-batch sent to the step's report (from the first sample, weighing and packing included, among the raw
figures); against a loop of model, cross-entropy on the response tokens, clip and AdamW on the same micro-batches,
which it already holds and which it times itself. Both have as many threads, take turns update by update,
and use the same attention.
Padding: the micro-batches of a streaming step at the paper's size, with long-tailed lengths.
Memory: peak resident memory (VmHWM) of a new process for each figure, beyond what stands before and the
gradients of hidden states and weight; that counts everything, scratch memory of libraries too. Linux only.
About four minutes on two cores. Writes one JSON with versions, machine, settings, raw figures and `result`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, process_bytes, versions, write
from material import QWEN2_05B, VOCABULARY, Lengths, ModelShape, SampleShape, full_logits, rounds_of, weighed

from hpt_ray.algorithms import make_estimator
from hpt_ray.cluster.process import prepare_process
from hpt_ray.cluster.runtime import Cluster, ResourceRequest
from hpt_ray.config.schema import ClusterConfig, ModelConfig
from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.group import LearnerGroup
from hpt_ray.learner.logprobs import logprob_and_entropy
from hpt_ray.learner.packing import WeightedSample
from hpt_ray.learner.policy import LearnerSpec, LearnerWorker
from hpt_ray.types import MicroBatch

LIMIT_S = 300.0
RATE = 1e-4
# Name: model, samples of an update, tokens of a micro-batch, counted updates. The first is the model and about the
# batch of the quickstart; the second, a larger one, is mostly arithmetic.
SPEED = {
    "quickstart": (
        ModelShape(64, 176, 2, 2, 1, 82),
        SampleShape(32, 8, Lengths(12, 0.3, 40), Lengths(16, 0.5, 44), 82),
        4096,
        30,
    ),
    "8M parameters": (
        ModelShape(256, 1024, 6, 8, 4, 8192),
        SampleShape(4, 8, Lengths(32, 0.3, 64), Lengths(80, 0.7, 512), 8192),
        2048,
        8,
    ),
}
PACKING = SampleShape(128, 8, Lengths(120, 0.5, 1024), Lengths(800, 1.0, 8192), 82)
MICRO_BATCH_TOKENS = 32_768
RANKS = (1, 2, 4, 8)
# Hidden size and tokens. Against full logits; and the growth, with a narrow model to be quick.
COMPARED = ((QWEN2_05B.hidden, 1024), (32, 1024), (32, 2048))
GROWTH = tuple((32, tokens << 10) for tokens in (1, 2, 4, 8, 16, 32))


# -- speed -----------------------------------------------------------------------------------------


class BareLoop:
    """Forward, backward, clip and AdamW in plain PyTorch, as an actor beside the learner's."""

    def __init__(self, model_path: str, threads: int, seed: int):
        prepare_process(threads=threads)
        from hpt_ray.learner.model import load_policy

        torch.set_num_threads(threads)
        self.model: Any = load_policy(ModelConfig(random_init=True), model_path, seed=seed).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)

    def update(self, micro_batches: list[MicroBatch]) -> float:
        """One optimizer step; its seconds."""
        from hpt_ray.learner.scorer_input import ScorerInput

        begin = time.perf_counter()
        for micro_batch in micro_batches:
            samples = ScorerInput.from_micro_batch(micro_batch, temperature=1.0, device="cpu")
            hidden = self.model.model(
                input_ids=samples.token_ids,
                position_ids=samples.position_ids,
                segments=samples.segments,
                use_cache=False,
            ).last_hidden_state[0]
            logits = self.model.lm_head(hidden[samples.before])
            loss = torch.nn.functional.cross_entropy(logits, samples.targets, reduction="none")
            scales = (
                np.repeat(micro_batch.scales[0], micro_batch.response_lengths) * micro_batch.advantages[0]
            )
            (loss * torch.from_numpy(scales)).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begin


def measure_speed(threads: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster.connect(ClusterConfig(address="local"))
        try:
            return {
                name: asyncio.run(_speed_of(cluster, name, Path(folder) / name, threads, seed))
                for name in SPEED
            }
        finally:
            cluster.close()


async def _speed_of(cluster: Cluster, name: str, folder: Path, threads: int, seed: int) -> dict[str, Any]:
    shape, samples, max_tokens_per_micro_batch, num_updates = SPEED[name]
    path = str(shape.save(folder))
    estimator = make_estimator("hpt")
    spec = LearnerSpec(
        ModelConfig(random_init=True), path, LearnerConfig(num_cpus=threads), seed, estimator, 1.0
    )
    needs = [ResourceRequest(kind, 1, 0.5, 0.0) for kind in ("learner", "bare")]
    await cluster.reserve(needs, timeout_s=LIMIT_S, name="benchmark")
    ranks = cluster.create("learner", LearnerWorker, [(0, 1, spec, None)])
    bare = cluster.create("bare", BareLoop, [(path, threads, seed)])
    (meeting,) = await ranks.call("rendezvous", timeout_s=LIMIT_S)
    await ranks.call("start", meeting, timeout_s=LIMIT_S)
    learner = LearnerGroup(
        ranks,
        estimator,
        batch=samples.batch,
        max_tokens_per_micro_batch=max_tokens_per_micro_batch,
        timeout_s=LIMIT_S,
    )
    seconds: dict[str, list[float]] = {"learner": [], "learner_from_samples": [], "bare": []}
    tokens = []
    for update in range(-2, num_updates):  # the first two are not counted
        prompts = samples.draw(seed + update + 2)
        micro_batches = _micro_batches(
            weighed(estimator, samples, seed + update + 2), max_tokens_per_micro_batch
        )
        if update % 2:  # neither always finds the machine as the other left it
            bare_s = (await bare.call("update", micro_batches, timeout_s=LIMIT_S))[0]
        begin = time.perf_counter()
        for prompt in prompts:
            learner.add(prompt)
        result = await learner.finish(RATE)
        elapsed = time.perf_counter() - begin
        if not update % 2:
            bare_s = (await bare.call("update", micro_batches, timeout_s=LIMIT_S))[0]
        assert result.num_tokens == sum(micro_batch.num_tokens for micro_batch in micro_batches)
        if update >= 0:
            for name, value in zip(seconds, (result.seconds, elapsed, bare_s), strict=True):
                seconds[name].append(value)
            tokens.append(result.num_tokens)
    cluster.release()
    return {"tokens": tokens, "seconds": seconds} | _rates(tokens, seconds)


def _micro_batches(prompts: list[list[WeightedSample]], max_tokens_per_micro_batch: int) -> list[MicroBatch]:
    rounds = rounds_of(prompts, num_ranks=1, max_tokens_per_micro_batch=max_tokens_per_micro_batch)
    return [micro_batch for (micro_batch,) in rounds]


def _rates(tokens: list[int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over updates; ratio and difference are those of pairs, one right after the other."""
    per_s = {
        name: statistics.median(n / s for n, s in zip(tokens, values, strict=True))
        for name, values in seconds.items()
    }
    pairs = list(zip(seconds["learner"], seconds["bare"], strict=True))
    return {
        "tokens_per_s": per_s,
        "tokens_per_s_ratio": statistics.median(bare / learner for learner, bare in pairs),
        "extra_s_per_update": statistics.median(learner - bare for learner, bare in pairs),
    }


# -- padding ---------------------------------------------------------------------------------------


def measure_packing(seed: int) -> list[dict[str, Any]]:
    """By number of ranks: what a step of the paper's size sends through forward."""
    prompts = weighed(make_estimator("hpt"), PACKING, seed)
    return [_packing_of(prompts, num_ranks) for num_ranks in RANKS]


def _packing_of(prompts: list[list[WeightedSample]], num_ranks: int) -> dict[str, Any]:
    from hpt_ray.learner.attention import Segments

    rounds = rounds_of(prompts, num_ranks=num_ranks, max_tokens_per_micro_batch=MICRO_BATCH_TOKENS)
    micro_batches = [micro_batch for micro_batches in rounds for micro_batch in micro_batches]
    sent = sum(micro_batch.num_tokens for micro_batch in micro_batches)
    real = sum(item.num_tokens for prompt in prompts for item in prompt)
    blocks = [
        block
        for micro_batch in micro_batches
        for block in Segments.from_lengths(micro_batch.sample_lengths).blocks
        if not micro_batch.is_dummy
    ]
    positions = sum(block.gather.numel() for block in blocks)
    longest = sum(max(micro_batch.num_tokens for micro_batch in micro_batches) for micro_batches in rounds)
    return {
        "num_ranks": num_ranks,
        "samples": sum(map(len, prompts)),
        "rounds": len(rounds),
        "dummy_micro_batches": sum(micro_batch.is_dummy for micro_batch in micro_batches),
        "tokens_sent": sent,
        "tokens_real": real,
        "padding_waste": 1 - real / sent,
        # Not tokens sent through the model: samples of a block of attention `segments` are as long as its longest.
        "padding_within_segments": 1 - real / positions,
        # What ranks in lockstep wait for the fullest micro-batch of a round.
        "imbalance": 1 - real / (longest * num_ranks),
        "mean_fill_of_micro_batches": real / (len(micro_batches) * MICRO_BATCH_TOKENS),
    }


# -- memory ----------------------------------------------------------------------------------------

FORMS = {"full": full_logits, "tiled": logprob_and_entropy}


def measure_memory(seed: int) -> dict[str, Any]:
    tasks = [("full", *size) for size in COMPARED] + [("tiled", *size) for size in {*COMPARED, *GROWTH}]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        figures = [pool.apply(_peak_of, (*task, seed)) for task in sorted(tasks)]
    peaks = {(f["form"], f["hidden"], f["tokens"]): f["peak_bytes"] for f in figures}
    ratios = {f"{h} wide, {n} tokens": peaks["tiled", h, n] / peaks["full", h, n] for h, n in COMPARED}
    return {"figures": figures, "ratios": ratios, "growth": _growth(peaks)}


def _growth(peaks: dict[tuple[str, int, int], int]) -> dict[str, float]:
    """Bytes for each further token of a sequence, from the shortest to the longest; one logit sample beside it."""
    (hidden, short), (_, long) = GROWTH[0], GROWTH[-1]
    per_token = (peaks["tiled", hidden, long] - peaks["tiled", hidden, short]) / (long - short)
    return {
        "bytes_per_token": per_token,
        "hidden_state_bytes": 4 * hidden,
        "logits_bytes": 4 * VOCABULARY,
        "share_of_logits": per_token / (4 * VOCABULARY),
    }


def _peak_of(form: str, hidden: int, tokens: int, seed: int) -> dict[str, Any]:
    """In a process of its own: peak memory of forward and backward beyond inputs and their gradients."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(seed)
    weight = (torch.randn(VOCABULARY, hidden) / hidden**0.5).requires_grad_()  # logits as large as a model's
    states = torch.randn(tokens, hidden, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (tokens,))

    def forward_backward(count: int) -> int:
        logprob, _ = FORMS[form](states[:count], weight, targets[:count])
        gradients = torch.autograd.grad(logprob.sum(), [states, weight])
        return sum(gradient.numel() * gradient.element_size() for gradient in gradients)

    forward_backward(1)  # libraries make their room
    before = _resident_bytes("VmRSS", reset=True)
    begin = time.perf_counter()
    gradient_bytes = forward_backward(tokens)
    return {
        "form": form,
        "hidden": hidden,
        "tokens": tokens,
        "seconds": time.perf_counter() - begin,
        "peak_bytes": _resident_bytes("VmHWM") - before - gradient_bytes,
        "logits_bytes": 4 * VOCABULARY * tokens,
    }


def _resident_bytes(name: str, reset: bool = False) -> int:
    """Memory of this process as the kernel counts it, now (VmRSS) or at its highest (VmHWM).

    With `reset` what is freed goes back to the kernel first, and the highest begins anew.
    """
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return process_bytes(name)


# -- the report ------------------------------------------------------------------------------------


def result(raw: dict[str, Any]) -> dict[str, Any]:
    """The figures that have a target, the worst of each kind; and what an update costs at the least.

    The speed's target is for the model whose time is mostly arithmetic. An update of the quickstart is so
    short that what does not grow with the model shows: calls of an actor, DeepSpeed's step, statistics.
    """
    speed, quickstart = (raw["speed"][name] for name in ("8M parameters", "quickstart"))
    ratio = speed["tokens_per_s_ratio"]
    waste = max(figures["padding_waste"] for figures in raw["packing"])
    memory = max(raw["memory"]["ratios"].values())
    return {
        "tokens_per_s_ratio": ratio,
        "quickstart_tokens_per_s_ratio": quickstart["tokens_per_s_ratio"],
        "quickstart_extra_s_per_update": quickstart["extra_s_per_update"],
        "padding_waste": waste,
        "logprob_memory_ratio": memory,
        "logprob_growth_share_of_logits": raw["memory"]["growth"]["share_of_logits"],
        "passed": ratio >= 0.9 and waste <= 0.02 and memory <= 0.05,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1, help="of each side of the speed part")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "learner",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            "threads": arguments.threads,
            "seed": arguments.seed,
            "speed": {
                name: {
                    "model": asdict(m),
                    "samples": asdict(r),
                    "max_tokens_per_micro_batch": t,
                    "updates": u,
                }
                for name, (m, r, t, u) in SPEED.items()
            },
            "packing": {
                "samples": asdict(PACKING),
                "max_tokens_per_micro_batch": MICRO_BATCH_TOKENS,
                "ranks": RANKS,
            },
            "memory": {"vocabulary": VOCABULARY, "compared": COMPARED, "growth": GROWTH},
        },
    }
    raw = {
        "speed": measure_speed(arguments.threads, arguments.seed),
        "packing": measure_packing(arguments.seed),
        "memory": measure_memory(arguments.seed),
    }
    report |= {"raw": raw, "result": result(raw)}
    write(arguments.out, report)


if __name__ == "__main__":
    main()
