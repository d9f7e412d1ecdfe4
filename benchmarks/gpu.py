"""What the learner does on one GPU: speed, packed attention, tiled log-probs, buckets, bfloat16.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json            # at most 8 minutes
    python benchmarks/gpu.py --out gpu.json --small                       # small shapes, on a CPU too

Needs of the packages of hpt_ray only numpy, psutil, torch, transformers and deepspeed; flash-attn is
measured where it is installed. Parts do not depend on each other: one that fails is in the JSON with its
error, one that cannot run here with the reason, and the file is written after every part. Weights and
tokens are random. The exit status is 1 where a part has failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_buckets import cuda_ipc, pinned
from machine import machine, versions
from material import QWEN2_05B, VOCABULARY, Lengths, ModelShape, SampleShape, full_logits, full_micro_batch
from measuring import Skipped, cost, errors, seconds
from transformers import AutoModelForCausalLM

from hpt_ray.learner.attention import NAME as SEGMENTS
from hpt_ray.learner.attention import Segments, segment_attention
from hpt_ray.learner.logprobs import TokenScorer, logprob_and_entropy
from hpt_ray.learner.scorer_input import ScorerInput

LIMIT_S = 420.0  # no part begins later
SEED = 0
# Products in bfloat16 per second without sparsity, by the maker's data sheet; the first name that fits.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None


@dataclass(frozen=True)
class Scale:
    """Shapes of all parts."""

    device: str
    model: ModelShape
    samples: SampleShape
    micro_batches: tuple[int, ...]  # tokens of a micro-batch
    tokens_per_update: int
    attention_tokens: int
    logprob_tokens: int
    logprob_vocabulary: int
    gap_tokens: int
    product_size: int
    repeats: int


def scale_of(small: bool) -> Scale:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if small:
        model = ModelShape(64, 176, 2, 2, 1, 1000)
        samples = SampleShape(1, 8, Lengths(8, 0.5, 32), Lengths(32, 1.0, 128), model.vocabulary)
        return Scale(device, model, samples, (128, 256, 512), 512, 256, 64, 5000, 256, 256, 2)
    samples = SampleShape(1, 8, Lengths(120, 0.5, 1024), Lengths(800, 1.0, 8192), VOCABULARY)
    micro_batches = (2048, 8192, 16_384)
    return Scale(device, QWEN2_05B, samples, micro_batches, 32_768, 8192, 4096, VOCABULARY, 8192, 8192, 5)


# -- learner ---------------------------------------------------------------------------------------


@cache
def learner(scale: Scale) -> Any:
    """The learner's engine of one rank, ZeRO 1 in bfloat16, in this process."""
    # One process, which nobody else should reach. Read when DeepSpeed, NCCL and gloo are loaded.
    os.environ |= {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    if scale.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from hpt_ray.cluster.meeting import open_meeting
    from hpt_ray.config.training import LearnerConfig
    from hpt_ray.learner.deepspeed import DeepSpeedEngine, join_ranks

    gpu = scale.device == "cuda"
    join_ranks(*open_meeting("127.0.0.1"), rank=0, world_size=1, gpu=gpu, timeout_s=60)
    module = TokenScorer(random_model(scale, torch.bfloat16)).train()
    return DeepSpeedEngine(module, LearnerConfig(zero_stage=1), dtype="bfloat16", world_size=1)


def random_model(scale: Scale, dtype: torch.dtype) -> Any:
    torch.manual_seed(SEED)
    with torch.device(scale.device):
        return AutoModelForCausalLM.from_config(
            scale.model.config(), dtype=dtype, attn_implementation=SEGMENTS
        )


def train(scale: Scale, tokens: int, attention: str) -> dict[str, Any]:
    """Tokens per second of updates of micro-batches of `tokens`, from arrays on the host to new weights."""
    if attention != SEGMENTS and not HAS_FLASH:
        raise Skipped("flash-attn is not installed")
    from hpt_ray.algorithms import make_estimator
    from hpt_ray.learner.packing import micro_batch_loss

    engine, estimator = learner(scale), make_estimator("grpo")
    engine.module.model.set_attn_implementation(attention)
    count = max(1, scale.tokens_per_update // tokens)
    micro_batches = [
        full_micro_batch(tokens, scale.samples, len(estimator.terms), SEED + i) for i in range(count)
    ]

    def update() -> None:
        for micro_batch in micro_batches:
            samples = ScorerInput.from_micro_batch(micro_batch, temperature=1.0, device=engine.device)
            logprob, entropy = engine.forward(samples)
            loss, _ = micro_batch_loss(
                estimator, micro_batch, logprob, entropy, torch.from_numpy(micro_batch.old_logprobs)
            )
            engine.backward(loss)
        engine.reduce()
        engine.step(1e-6)

    figures = cost(update, scale.repeats)
    flops = sum(
        model_flops(scale.model, micro_batch.sample_lengths, micro_batch.response_lengths)
        for micro_batch in micro_batches
    )
    per_s = flops / figures["seconds"]
    peak = next((p for name, p in PEAK_FLOPS.items() if name in device_name(scale)), None)
    return figures | {
        "micro_batches": count,
        "samples": sum(len(micro_batch.sample_lengths) for micro_batch in micro_batches),
        "tokens_per_s": count * tokens / figures["seconds"],
        "flops_per_s": per_s,
        "mfu": None if peak is None else per_s / peak,
        "share_of_product_speed": per_s / product_speed(scale),
    }


def model_flops(model: ModelShape, sample_lengths: np.ndarray, response_lengths: np.ndarray) -> float:
    """Forward and backward of samples, nothing computed twice: 6 per weight and token (of the output layer
    on responses only), and attention's two products over the causal half.
    """
    kv = model.hidden * model.num_kv_heads // model.num_heads
    weights = model.hidden * (2 * model.hidden + 2 * kv + 3 * model.mlp)
    squares = np.square(sample_lengths.astype(np.float64)).sum()
    layer = 6.0 * weights * sample_lengths.sum() + 6.0 * model.hidden * squares
    return float(
        model.num_layers * layer + 6.0 * model.hidden * model.vocabulary * float(response_lengths.sum())
    )


@cache
def product_speed(scale: Scale) -> float:
    """Operations per second of one large bfloat16 product here."""
    n = scale.product_size
    a, b = (torch.randn(n, n, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, scale.repeats)


def device_name(scale: Scale) -> str:
    return torch.cuda.get_device_name() if scale.device == "cuda" else "cpu"


# -- attention and log-probs against their plain forms ---------------------------------------------


def attention(scale: Scale, form: str) -> dict[str, Any]:
    """Forward and backward of one layer's attention over a micro-batch, and its error against a T × T mask."""
    if form == "flash" and not HAS_FLASH:
        raise Skipped("flash-attn is not installed")
    model, total = scale.model, scale.attention_tokens
    lengths = full_micro_batch(total, scale.samples, 1, SEED).sample_lengths
    size = model.hidden // model.num_heads
    torch.manual_seed(SEED)
    tensors = [
        torch.randn(1, heads, total, size, device=scale.device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    ]
    forms: dict[str, Callable[..., Any]] = {
        "plain": masked_attention(lengths, scale),
        "segments": packed_attention(lengths, scale),
        "flash": partial(flash_attention, lengths=lengths),
    }

    def run(which: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        out = forms[which](*inputs)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    exact = run("plain", [x.detach().float().requires_grad_() for x in tensors])
    found = errors(run(form, tensors), exact)
    del exact
    return cost(lambda: run(form, tensors), scale.repeats) | {"samples": len(lengths), "errors": found}


def masked_attention(lengths: np.ndarray, scale: Scale) -> Callable[..., torch.Tensor]:
    """The plain form: one attention over all tokens, masked to the own sample and the past."""
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.from_numpy(lengths)).to(scale.device)
    mask = (sample[:, None] == sample[None, :]).tril()

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return forward


def packed_attention(lengths: np.ndarray, scale: Scale) -> Callable[..., torch.Tensor]:
    segments = Segments.from_lengths(lengths, scale.device)
    return lambda q, k, v: segment_attention(torch.nn.Module(), q, k, v, None, segments=segments)[0]


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=q.device)
    longest = int(lengths.max())
    flat = [x[0].transpose(0, 1) for x in (q, k, v)]
    return flash_attn_varlen_func(*flat, ends, ends, longest, longest, causal=True)[None]


def logprob(scale: Scale, form: str) -> dict[str, Any]:
    """Forward and backward of log π and entropy from bfloat16 hidden states; error against float32."""
    forms: dict[str, Callable[..., Any]] = {"full": full_logits, "tiled": logprob_and_entropy}
    size, vocabulary = scale.model.hidden, scale.logprob_vocabulary
    torch.manual_seed(SEED)
    shapes = [(scale.logprob_tokens, size), (vocabulary, size)]
    inputs = [
        (torch.randn(shape, device=scale.device) / size**0.25).bfloat16().requires_grad_() for shape in shapes
    ]
    targets = torch.randint(0, vocabulary, (scale.logprob_tokens,), device=scale.device)

    def run(which: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        logprob, entropy = forms[which](*inputs, targets)
        return [logprob.detach(), entropy, *torch.autograd.grad(logprob.mean(), inputs)]

    exact = run("full", [x.detach().float().requires_grad_() for x in inputs])
    found = errors(run(form, inputs), exact)
    del exact
    return cost(lambda: run(form, inputs), scale.repeats) | {
        "tokens": scale.logprob_tokens,
        "gradient_bytes": sum(x.numel() * x.element_size() for x in inputs),
        "errors": found,
    }


def bfloat16_gap(scale: Scale) -> dict[str, Any]:
    """|log π in bfloat16 − log π in float32| of the response tokens, the same weights rounded or not."""
    micro_batch = full_micro_batch(scale.gap_tokens, scale.samples, 1, SEED)
    samples = ScorerInput.from_micro_batch(micro_batch, temperature=1.0, device=scale.device)
    model = random_model(scale, torch.float32)
    with torch.no_grad():
        exact = TokenScorer(model)(samples)[0]
        rounded = TokenScorer(model.bfloat16())(samples)[0]
    gap = (exact - rounded).abs().cpu().numpy()
    return {
        "tokens": len(gap),
        "mean": float(gap.mean()),
        "p99": float(np.quantile(gap, 0.99)),
        "max": float(gap.max()),
    }


# -- all parts -------------------------------------------------------------------------------------


def parts(scale: Scale) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        **{f"logprob/{form}": partial(logprob, scale, form) for form in ("full", "tiled")},
        **{f"attention/{form}": partial(attention, scale, form) for form in ("plain", "segments", "flash")},
        "bfloat16_gap": partial(bfloat16_gap, scale),
        "buckets/pinned": partial(pinned, scale.repeats),
        "buckets/cuda_ipc": partial(cuda_ipc, scale.repeats),
        **{
            f"train/{name}/{tokens}": partial(train, scale, tokens, name)
            for name in (SEGMENTS, "flash_attention_2")
            for tokens in scale.micro_batches
        },
    }


def measured(part: Callable[[], dict[str, Any]], time_left: bool) -> dict[str, Any]:
    """What a part found, or `skipped` or `error` with the reason."""
    begin = time.perf_counter()
    try:
        if not time_left:
            raise Skipped(f"{LIMIT_S:.0f} s had passed")
        found = part()
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found | {"part_s": time.perf_counter() - begin}


def result(raw: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures one asks for first; None where the part did not run."""

    def ratio(name: str, over: str, key: str) -> float | None:
        a, b = raw[name].get(key), raw[over].get(key)
        return a / b if a and b else None

    fastest = max(raw, key=lambda name: raw[name].get("tokens_per_s", 0.0))
    return {
        "tokens_per_s": raw[fastest].get("tokens_per_s"),
        "mfu": raw[fastest].get("mfu"),
        "fastest": fastest,
        "logprob_time_ratio": ratio("logprob/tiled", "logprob/full", "seconds"),
        "logprob_memory_ratio": ratio("logprob/tiled", "logprob/full", "peak_bytes"),
        "attention_time_ratio": ratio("attention/segments", "attention/plain", "seconds"),
        "bfloat16_gap_mean": raw["bfloat16_gap"].get("mean"),
        "skipped": {name: found["skipped"] for name, found in raw.items() if "skipped" in found},
        "failed": {name: found["error"] for name, found in raw.items() if "error" in found},
    }


def main() -> int:
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="small shapes")
    arguments = parser.parse_args()
    scale = scale_of(arguments.small)
    if scale.device == "cpu" and not arguments.small:
        parser.error("there is no GPU here; --small measures small shapes on the CPU")
    report: dict[str, Any] = {
        "benchmark": "gpu",
        "versions": versions() | {"cuda": torch.version.cuda},
        "machine": machine() | {"device": device_name(scale)},
        "settings": {"small": arguments.small, "seed": SEED, **asdict(scale)},
        "raw": {},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts(scale).items():
        report["raw"][name] = measured(part, time.perf_counter() - begin < LIMIT_S)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    report["result"] = result(report["raw"])
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["result"], indent=2))
    return 1 if report["result"]["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
