"""Samples per second of GRPO: hpt_ray and TRL's trainer side by side on one machine without a GPU.

    python benchmarks/against_trl.py --out benchmarks/results/against_trl.json

The same on both sides: a 0.8M-parameter model, prompts and their order, 8 rollouts of a prompt, samples a step,
one update a step, temperature 1, float32, AdamW, GRPO's loss without KL, the reward, and all cores of the
machine. hpt_ray has a rollout worker and two learner ranks of a thread each, which share them; TRL, where generation
and training take turns, is run with one thread and with as many as there are cores, and its best counts. TRL generates
with `generate` of transformers. `--continuous-batching` runs its other way on a CPU too; its vLLM mode needs a GPU.
Nothing is trained in earnest: the learning rate is so small that lengths and rewards stay what they are.

Two length distributions: `even`, 32 prompts of which no answer ends before its 64 tokens, and `long_tail`, 8
prompts where every token ends the answer with the same probability: mean 170, a tenth above 390, at most
1,024. The model's end token has that probability by construction, whatever came before. The reward is a coin
that depends on the text. The long tail has fewer prompts so that the benchmark takes minutes.

TRL is installed into an environment of its own, `--trl-env`, with pip and its configuration. The first step
of every run is a warm-up and not counted. Writes one JSON with versions, machine, settings, raw figures of every
run, and `result`: `samples_per_s_ratio` by length distribution, hpt_ray over TRL's best, and `alike`: whether mean
length and mean reward are equal within five standard errors. A run that fails is named in `failures`, and its
length distribution gets no ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from machine import machine, versions, write
from transformers import AutoModelForCausalLM

from hpt_ray.data.mini import resolve
from hpt_ray.data.mini.model import init_weights, model_config
from hpt_ray.data.mini.tokenizer import build_tokenizer
from hpt_ray.data.sources import read_rows
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.utils.cache import cache_dir

ROOT = Path(__file__).resolve().parents[1]
TRL_SIDE = Path(__file__).with_name("trl_grpo.py")
TRL = "trl==1.16.0"
ROLLOUTS = 8
LEARNING_RATE = 1e-6
SEED = 0
LIMIT_S = 240.0  # of one run


@dataclass(frozen=True)
class Lengths:
    """A length distribution, and how much of it is measured."""

    prompts: int  # of a step
    end_probability: float  # of every token
    max_tokens: int
    steps: int  # the first is a warm-up
    max_num_seqs: (
        int  # ours: below the number of samples, so that the learner has work before the last is done
    )
    max_tokens_per_micro_batch: int  # ours
    samples_per_micro_batch: int  # TRL's

    @property
    def samples(self) -> int:
        return self.prompts * ROLLOUTS


LENGTHS = {
    "even": Lengths(
        32, 1e-9, 64, 6, max_num_seqs=128, max_tokens_per_micro_batch=4096, samples_per_micro_batch=64
    ),
    "long_tail": Lengths(
        8, 1 / 170, 1024, 3, max_num_seqs=32, max_tokens_per_micro_batch=4096, samples_per_micro_batch=32
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--trl-env", type=Path, default=cache_dir() / "trl-env", help="made where it is not")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument(
        "--continuous-batching", action="store_true", help="also TRL with transformers' continuous batching"
    )
    parser.add_argument("--install-only", action="store_true", help="make --trl-env and stop")
    arguments = parser.parse_args()
    python = trl_python(arguments.trl_env)
    if arguments.install_only:
        return
    report: dict[str, Any] = {
        "benchmark": "against_trl",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            "rollouts": ROLLOUTS,
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "lengths": {name: asdict(LENGTHS[name]) for name in arguments.lengths},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        raw = {
            name: compare(
                LENGTHS[name], python, Path(folder) / name, with_batching=arguments.continuous_batching
            )
            for name in arguments.lengths
        }
    report |= {"raw": raw, "result": result(raw)}
    write(arguments.out, report)


def trl_python(folder: Path) -> Path:
    """The Python of an environment with TRL and the CPU build of torch that we use; installed if need be."""
    python = folder / "bin" / "python"
    has_trl = [python, "-c", f"import trl, torch; assert trl.__version__ == '{TRL.partition('==')[2]}'"]
    if python.exists() and subprocess.run(has_trl, capture_output=True).returncode == 0:
        return python
    print(f"Installing {TRL} into {folder}")
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # First, or pip would take a build for GPUs. Where it comes from is for pip's configuration to say.
    subprocess.run([*pip, "--no-deps", f"torch=={torch.__version__}"], check=True)
    subprocess.run([*pip, TRL], check=True)
    return python


def compare(lengths: Lengths, python: Path, folder: Path, *, with_batching: bool) -> dict[str, Any]:
    """Our run and TRL's on the same model."""
    folder.mkdir()
    write_model(folder / "model", lengths)
    cores = os.cpu_count() or 1
    ways = [(threads, False) for threads in sorted({1, cores})]
    ways += [(cores, True)] if with_batching else []
    return {
        "hpt_ray": guarded(lambda: run_ours(lengths, folder)),
        "trl": [
            {
                "threads": threads,
                "continuous_batching": batching,
                **guarded(lambda t=threads, b=batching: run_trl(lengths, python, folder, t, b)),
            }
            for threads, batching in ways
        ],
    }


def guarded(run: Any) -> dict[str, Any]:
    """What a run came to; one that fails says why and takes nothing else down."""
    try:
        return run()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        output = (error.stderr or b"").decode(errors="replace")
        return {"failure": f"{type(error).__name__}: {output[-2000:]}"}


@torch.no_grad()
def write_model(folder: Path, lengths: Lengths) -> None:
    """A random model whose end token has the same probability everywhere, nearly.

    One residual channel holds the same value at every token: no layer writes to it, and it is large, so that it
    is still nearly the same behind the last norm. The output sample of the end token reads that channel alone;
    all other samples are small and leave it out.
    """
    config = model_config("s")
    config.tie_word_embeddings = False
    config.max_position_embeddings = 2048
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    init_weights(model, SEED)
    body, head = model.model, model.lm_head.weight
    body.embed_tokens.weight[:, 0] = 8.0
    for layer in body.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    generator = torch.Generator().manual_seed(SEED)
    head.copy_(0.02 * torch.randn(head.shape, generator=generator))
    head[:, 0] = 0.0
    sample = torch.randint(config.vocab_size, (8, 256), generator=generator)
    channel = float(body(sample).last_hidden_state[..., 0].mean())
    p = lengths.end_probability
    logit = math.log(p / (1 - p) * (config.vocab_size - 1))  # the others' logits are about 0
    head[config.eos_token_id] = 0.0
    head[config.eos_token_id, 0] = logit / channel
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def our_config(lengths: Lengths, folder: Path) -> dict[str, Any]:
    return {
        "prompts_per_step": lengths.prompts,
        "group_size": ROLLOUTS,
        "max_tokens_per_micro_batch": lengths.max_tokens_per_micro_batch,
        "run": {"dir": str(folder / "runs"), "steps": lengths.steps, "seed": SEED},
        "model": {"path": str(folder / "model")},
        "data": {
            "train": ["mini:train"],
            "template": "plain",
            "max_prompt_tokens": 40,
            "max_response_tokens": lengths.max_tokens,
            "shuffle": False,
        },
        "rollout": {"kv_cache_gib": 1.0, "max_num_seqs": lengths.max_num_seqs},
        "reward": {"function": f"python:{TRL_SIDE}:coin", "require_finished": False},
        "algorithm": {"name": "grpo"},
        # Two ranks of half a core: both cores learn once the last rollouts are in.
        "learner": {
            "learning_rate": LEARNING_RATE,
            "weight_decay": 0.0,
            "num_ranks": 2,
            "num_cpus": 0.5,
        },
        "observe": {"samples_every": 0, "rollouts_every": 0},
        "cluster": {"address": "local"},
    }


def run_ours(lengths: Lengths, folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    file.write_text(json.dumps(our_config(lengths, folder)), encoding="utf-8")  # JSON is YAML
    subprocess.run(
        [sys.executable, "-m", "hpt_ray.main", "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    run = RunFolder(folder / "runs" / "latest")
    lines = [line for line in run.read_metrics() if line["step"]]
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    # All of training but its first step and the checkpoint at the end; what lies between steps counts.
    saving_s = sum(line.get("time/checkpoint_s", 0.0) for line in lines)
    seconds = summary["training_s"] - saving_s - lines[0]["time/step_s"]
    return figures(
        seconds,
        lengths.samples * (lengths.steps - 1),
        [line["rollout/length_mean"] for line in lines],
        [line["reward/mean"] for line in lines],
    ) | {
        "step_s": [line["time/step_s"] for line in lines],
        "rollout_s": [line["time/rollout_s"] for line in lines],
        "failures": summary["failures"],
    }


def trl_settings(lengths: Lengths, folder: Path, threads: int, continuous_batching: bool) -> dict[str, Any]:
    """What `trl_grpo.py` reads."""
    return {
        "model": str(folder / "model"),
        "folder": str(folder / "trl"),
        "texts": prompts(lengths.prompts * lengths.steps),
        "prompts": lengths.prompts,
        "rollouts": ROLLOUTS,
        "steps": lengths.steps,
        "max_tokens": lengths.max_tokens,
        "samples_per_micro_batch": lengths.samples_per_micro_batch,
        "learning_rate": LEARNING_RATE,
        "threads": threads,
        "continuous_batching": continuous_batching,
        "seed": SEED,
    }


def run_trl(
    lengths: Lengths, python: Path, folder: Path, threads: int, continuous_batching: bool
) -> dict[str, Any]:
    settings = trl_settings(lengths, folder, threads, continuous_batching)
    given, found = folder / "trl.json", folder / "trl-result.json"
    given.write_text(json.dumps(settings), encoding="utf-8")
    subprocess.run(
        [python, TRL_SIDE, given, found],
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        },
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    result = json.loads(found.read_text(encoding="utf-8"))
    ends = result["step_ends_s"]
    log = [entry for entry in result["log"] if "reward" in entry]
    return figures(
        ends[-1] - ends[0],
        lengths.samples * (len(ends) - 1),
        [entry["completions/mean_length"] for entry in log],
        [entry["reward"] for entry in log],
    ) | {
        "step_s": [after - before for before, after in pairwise(ends)],
        "versions": result["versions"],
    }


def prompts(count: int) -> list[str]:
    """The first `count` prompts, as the template `plain` renders them."""
    samples = read_rows(resolve("mini:train"))
    return [sample.messages[-1]["content"] for sample, _ in zip(samples, range(count), strict=False)]


def figures(
    seconds: float, samples: int, lengths: Sequence[float], rewards: Sequence[float]
) -> dict[str, Any]:
    return {
        "samples_per_s": samples / seconds,
        "tokens_per_s": samples * fmean(lengths) / seconds,
        "seconds": seconds,
        "mean_length": fmean(lengths),
        "mean_reward": fmean(rewards),
        "lengths": list(lengths),
        "rewards": list(rewards),
    }


def result(raw: dict[str, Any]) -> dict[str, Any]:
    ratios: dict[str, float | None] = {}
    alike: dict[str, bool] = {}
    failures = []
    for name, runs in raw.items():
        ours, theirs = runs["hpt_ray"], runs["trl"]
        failures += [f"{name}, hpt_ray" for run in [ours] if "failure" in run]
        failures += [
            f"{name}, TRL, {run['threads']} threads, continuous batching {run['continuous_batching']}"
            for run in theirs
            if "failure" in run
        ]
        if any("failure" in run for run in [ours, *theirs]):
            ratios[name] = None  # what failed may have been TRL's best
            continue
        best = max(theirs, key=lambda run: run["samples_per_s"])
        ratios[name] = ours["samples_per_s"] / best["samples_per_s"]
        alike[name] = all(_alike(ours, run, LENGTHS[name]) for run in theirs)
    return {"samples_per_s_ratio": ratios, "alike": alike, "failures": failures}


def _alike(ours: dict[str, Any], theirs: dict[str, Any], lengths: Lengths) -> bool:
    """Within five standard errors of the difference of two means, from the known distributions."""
    error = 5 * math.sqrt(2 / (lengths.steps * lengths.samples))
    spread = min(1 / lengths.end_probability, lengths.max_tokens) if lengths.end_probability > 1e-6 else 0.0
    same_length = abs(ours["mean_length"] - theirs["mean_length"]) <= error * spread + 1e-6
    return same_length and abs(ours["mean_reward"] - theirs["mean_reward"]) <= error * 0.5


if __name__ == "__main__":
    main()
