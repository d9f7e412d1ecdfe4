"""What the estimator costs: `weigh` and `loss` for 1,024 samples × 8,192 tokens against a forward pass.

    python benchmarks/estimator.py --out estimator.json

Two comparisons with the smallest model of the paper (Qwen2.5-Math-1.5B): operations per token,
counted by torch's dispatcher and from the model's shapes; and seconds per token on this machine,
where the forward pass is measured as its matrix products only (no attention, norms or softmax), so
the share given is too high rather than too low. Backward of the loss to the log-probs is included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine, versions, write
from torch.utils._python_dispatch import TorchDispatchMode

from hpt_ray.algorithms import BatchShape, Estimator, SampleWeights, TokenBatch, make_estimator

HIDDEN, MLP, LAYERS, KV, VOCABULARY = 1536, 8960, 28, 256, 151_936  # Qwen2.5-Math-1.5B
LAYER_PRODUCTS = [(HIDDEN, HIDDEN + 2 * KV), (HIDDEN, HIDDEN), (HIDDEN, 2 * MLP), (MLP, HIDDEN)]


class CountElements(TorchDispatchMode):
    """Elements written by all tensor operations: one operation per element, views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, torch.Tensor):
            inputs = [x.numel() for x in args if isinstance(x, torch.Tensor)]
            self.elements += max([result.numel(), *inputs])  # a sum reads more than it writes
        return result


def make_samples(num_samples: int, num_tokens: int, seed: int) -> TokenBatch:
    """Groups of three rollouts and their demonstration."""
    random = torch.Generator().manual_seed(seed)
    size = num_samples * num_tokens
    logprob = -torch.rand(size, generator=random) * 2
    return TokenBatch(
        logprobs=logprob.requires_grad_(),
        old_logprobs=logprob.detach() + 0.1 * torch.randn(size, generator=random),
        sample_lengths=torch.full((num_samples,), num_tokens),
        group_ids=torch.arange(num_samples) // 4,
        rewards=torch.randint(0, 2, (num_samples,), generator=random).double(),
        is_demo=torch.arange(num_samples) % 4 == 3,
        entropy=torch.rand(size, generator=random),
    )


def loss_and_backward(estimator: Estimator, samples: TokenBatch, weights: SampleWeights) -> None:
    loss, _ = estimator.loss(samples, weights)
    loss.backward()


def measure(name: str, num_samples: int, num_tokens: int, samples_per_micro_batch: int) -> dict:
    """Seconds for the whole step's samples, micro-batch by micro-batch, and operations per token."""
    estimator = make_estimator(name)
    batch = BatchShape(num_samples // 4, 3, num_tokens)
    lengths = np.full(num_samples, num_tokens)
    rewards = np.random.default_rng(0).integers(0, 2, num_samples)
    index = np.arange(num_samples)
    begin = time.perf_counter()
    estimator.weigh(lengths, index // 4, rewards, index % 4 == 3, np.ones(num_samples), batch)
    weigh_s = time.perf_counter() - begin
    samples = make_samples(samples_per_micro_batch, num_tokens, seed=1)
    gate = np.ones(samples_per_micro_batch)
    weights = estimator.weigh(
        samples.sample_lengths, samples.group_ids, samples.rewards, samples.is_demo, gate, batch
    )
    loss_and_backward(estimator, samples, weights)
    with CountElements() as counter:
        loss_and_backward(estimator, samples, weights)
    num_micro_batches = -(-num_samples // samples_per_micro_batch)
    seconds = []
    for _ in range(num_micro_batches):
        begin = time.perf_counter()
        loss_and_backward(estimator, samples, weights)
        seconds.append(time.perf_counter() - begin)
    tokens = num_micro_batches * samples_per_micro_batch * num_tokens
    return {
        "algorithm": name,
        "weigh_s": weigh_s,
        "loss_s": sum(seconds),
        "micro_batch_s": {"min": min(seconds), "median": float(np.median(seconds)), "max": max(seconds)},
        "tokens": tokens,
        "ns_per_token": 1e9 * (sum(seconds) + weigh_s) / tokens,
        "operations_per_token": counter.elements / (samples_per_micro_batch * num_tokens),
    }


def measure_forward(num_tokens: int, repeats: int) -> dict:
    """Seconds per token of the model's matrix products in float32: one layer times 28, and the head."""
    inputs = {width: torch.randn(num_tokens, width) for width in (HIDDEN, MLP)}

    def seconds(shapes: list[tuple[int, int]]) -> float:
        weights = [torch.randn(width, out) for width, out in shapes]
        best = float("inf")
        for _ in range(repeats):
            begin = time.perf_counter()
            for weight in weights:
                inputs[weight.shape[0]] @ weight
            best = min(best, time.perf_counter() - begin)
        return best

    layer_s, head_s = seconds(LAYER_PRODUCTS), seconds([(HIDDEN, VOCABULARY)])
    products = LAYERS * sum(a * b for a, b in LAYER_PRODUCTS) + HIDDEN * VOCABULARY
    return {
        "layer_s": layer_s,
        "head_s": head_s,
        "tokens": num_tokens,
        "ns_per_token": 1e9 * (LAYERS * layer_s + head_s) / num_tokens,
        "operations_per_token": 2 * products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a sample")
    parser.add_argument("--micro_batch-samples", type=int, default=4)
    parser.add_argument("--algorithms", nargs="+", default=["hpt", "grpo", "gspo", "luffy", "srft"])
    parser.add_argument("--forward-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    raw = [measure(name, args.samples, args.tokens, args.micro_batch_samples) for name in args.algorithms]
    forward = measure_forward(args.forward_tokens, repeats=3)
    slowest = max(raw, key=lambda figures: figures["ns_per_token"])
    most = max(raw, key=lambda figures: figures["operations_per_token"])
    report = {
        "benchmark": "estimator",
        "versions": versions(),
        "machine": machine(),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "raw": {"estimator": raw, "forward": forward},
        "result": {
            "share_of_forward_operations": most["operations_per_token"] / forward["operations_per_token"],
            "share_of_forward_time": slowest["ns_per_token"] / forward["ns_per_token"],
            "below_one_percent": max(
                most["operations_per_token"] / forward["operations_per_token"],
                slowest["ns_per_token"] / forward["ns_per_token"],
            )
            < 0.01,
        },
    }
    write(args.out, report)


if __name__ == "__main__":
    main()
