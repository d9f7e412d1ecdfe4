"""What certain early decisions save: tokens and seconds at γ = 1/8, 2/8, 4/8 and several solve rates.

    python benchmarks/early_gate.py --out benchmarks/results/early_gate.json

The solve rates are those of the small task's models: untrained, the weak base, and checkpoints of one
quickstart run that this script makes first. Each model answers the same prompts with the same seeds and
weights four times, side by side: once waiting for all rollouts, then once for each γ with early decisions.
vLLM, the verifier, `graded_groups` and the switch are those of a run; there is no learner. What was sampled
is read from vLLM's own counter, so tokens of aborted rollouts count as spent.

Writes one JSON with versions, machine, settings, raw figures by batch, and `result`: `tokens_saved` and
`time_saved` as shares of what waiting costs, by γ and solve rate, `tokens_avoidable`, what would be saved were
the samples of a prompt drawn one after another, and `decisions_equal`. The engine decodes 64 sequences at a
time, a sixteenth of a batch: where all of a batch runs at the same time, an aborted rollout makes room for
nobody, and tokens are saved but little time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, versions, write
from rich.console import Console

from hpt_ray.algorithms.gates import is_certain, switch, threshold
from hpt_ray.cli.mini_base import model_folder
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.mini import is_mini
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.evaluation.plan import Plan, load_evaluation, make_plan
from hpt_ray.evaluation.run import Workers, start_workers
from hpt_ray.observe.run_folder import RunFolder
from hpt_ray.reward.groups import graded_groups
from hpt_ray.rollout.requests import request_for
from hpt_ray.rollout.router import Router
from hpt_ray.types import FinishReason, Group, Prompt

ROOT = Path(__file__).resolve().parents[1]
NUM_ROLLOUTS = 8
WAITED = "waited"
GAMMAS = {"1/8": 1 / 8, "2/8": 2 / 8, "4/8": 4 / 8}
MAX_RESPONSE_TOKENS = 44  # as in configs/quickstart.yaml
SEED = 0
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Pass:
    """One way through one batch of prompts."""

    groups: dict[str, Group]  # by prompt
    sampled_tokens: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--prompts", type=int, default=128, help="prompts of a batch")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--max-num-seqs", type=int, default=64, help="sequences decoded at a time")
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--checkpoint-every", type=int, default=34, help="each checkpoint is a solve rate")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "early_gate",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            **{name: value for name, value in vars(arguments).items() if name != "out"},
            "group_size": NUM_ROLLOUTS,
            "max_response_tokens": MAX_RESPONSE_TOKENS,
            "temperature": 1.0,
            "seed": SEED,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        models = train(Path(folder), arguments.train_steps, arguments.checkpoint_every)
        raw = asyncio.run(measure_all(models, arguments, Path(folder)))
    report |= {"raw": raw, "result": result(raw)}
    write(arguments.out, report)


def train(folder: Path, steps: int, every: int) -> dict[str, str]:
    """The models by name, the weakest first: one quickstart run, its start and its checkpoints."""
    words = {
        "run.steps": steps,
        "run.seed": SEED,
        "run.dir": folder / "runs",
        "checkpoint.every": every,
        "checkpoint.keep": 0,
        "evaluation.every": 0,
        "evaluation.before_training": "false",
        "observe.samples_every": 0,
    }
    subprocess.run(
        [sys.executable, "-m", "hpt_ray.main", *(f"{name}={value}" for name, value in words.items())],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        check=True,
    )
    checkpoints = sorted(RunFolder(folder / "runs" / "latest").checkpoints.glob("step-*"))
    trained = {f"step {int(path.name.removeprefix('step-'))}": str(path / "hf") for path in checkpoints}
    return {"untrained": "mini:t-fresh", "weak base": "mini:t", **trained}


async def measure_all(
    models: dict[str, str], arguments: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    cluster = Cluster.connect(ClusterConfig(address="local"))
    try:
        stages = []
        for name, uri in models.items():
            path = str(await model_folder(uri, cluster, Console())) if is_mini(uri) else uri
            stages.append({"model": name, **await measure(path, arguments, cluster, folder / "logs")})
            print(f"{name}: solve rate {stages[-1]['solve_rate']:.2f}", flush=True)
        return stages
    finally:
        cluster.close()


async def measure(model: str, arguments: argparse.Namespace, cluster: Cluster, logs: Path) -> dict[str, Any]:
    """All batches of one model, each waiting and with early decisions at every γ; what each came to."""
    plan = plan_for(model, arguments.max_num_seqs)
    prompts = load_prompts(
        ["mini:train"],
        Template(plan.config.data, load_tokenizer(model)),
        max_prompt_tokens=plan.config.data.max_prompt_tokens,
        max_response_tokens=MAX_RESPONSE_TOKENS,
        demonstrations="required",
    )
    logs.mkdir(exist_ok=True)
    workers = await start_workers(cluster, plan, model, logs)
    try:
        router = Router(workers.engines, max_num_seqs=arguments.max_num_seqs, timeout_s=TIMEOUT_S)
        ask = partial(one_pass, workers, router, plan)
        await ask([prompts[i] for i in range(32)], batch=-1, gamma=None)  # warm-up
        batches = []
        for batch in range(arguments.batches):
            first = batch * arguments.prompts
            asked = [prompts[i % len(prompts)] for i in range(first, first + arguments.prompts)]
            passes = {}
            for name in rotated([WAITED, *GAMMAS], batch):  # so that no setting is always the first
                passes[name] = await ask(asked, batch=batch, gamma=GAMMAS.get(name))
            waited = passes.pop(WAITED)
            batches.append(
                {
                    "solved": sum(group.num_correct for group in waited.groups.values()),
                    "waited": figures(waited),
                    "avoidable_tokens": {name: avoidable(waited, gamma) for name, gamma in GAMMAS.items()},
                    "early": {
                        name: {**figures(found), **compared(found, waited, GAMMAS[name])}
                        for name, found in passes.items()
                    },
                }
            )
    finally:
        workers.stop()
        cluster.release()
    num_rollouts = arguments.batches * arguments.prompts * NUM_ROLLOUTS
    return {"solve_rate": sum(batch["solved"] for batch in batches) / num_rollouts, "batches": batches}


def plan_for(model: str, max_num_seqs: int) -> Plan:
    """The rollout worker and the verifier of a quickstart run, as an evaluation would start them."""
    words = {
        "model": model,
        "sets": "{train: mini:train}",
        "samples": NUM_ROLLOUTS,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_response_tokens": MAX_RESPONSE_TOKENS,
        "data.template": "plain",
        "data.add_bos": "true",
        "reward.function": "boxed",
        "rollout.max_num_seqs": max_num_seqs,
        "rollout.kv_cache_gib": 0.25,
        "rollout.engine": "{disable_log_stats: false}",  # its counter of sampled tokens
    }
    return make_plan(load_evaluation(None, [f"{name}={value}" for name, value in words.items()]))


async def one_pass(
    workers: Workers,
    router: Router,
    plan: Plan,
    prompts: list[Prompt],
    *,
    batch: int,
    gamma: float | None,
) -> Pass:
    """Generate, grade and group one batch; with `gamma`, stop for a prompt once its decision is certain."""
    held = 0 if gamma is None else threshold(gamma, NUM_ROLLOUTS)  # as a run holds them
    requests = [
        request_for(q.id, q.prompt_ids, num_samples=NUM_ROLLOUTS, run_seed=SEED, step=batch, num_held=held)
        for q in prompts
    ]

    def certain(_: Prompt, num_correct: int, num_graded: int) -> bool:
        return gamma is not None and is_certain(
            gamma, num_correct=num_correct, num_graded=num_graded, num_rollouts=NUM_ROLLOUTS
        )

    tokens = await sampled_tokens(workers)
    begin = time.perf_counter()
    draw = router.generate(requests, plan.tasks[0].sampling)
    groups = {
        group.prompt.id: group
        async for group in graded_groups(
            draw,
            {prompt.id: prompt for prompt in prompts},
            num_samples=NUM_ROLLOUTS,
            verifier=workers.verifier,
            timeout_s=TIMEOUT_S,
            is_certain=certain,
            abort=draw.abort,
            release=draw.release,
        )
    }
    seconds = time.perf_counter() - begin
    return Pass(groups, await sampled_tokens(workers) - tokens, seconds)


async def sampled_tokens(workers: Workers) -> int:
    """All tokens the engine has sampled since it started, those of aborted answers included."""

    def read(_: Any) -> int:
        from vllm.v1.metrics.reader import get_metrics_snapshot

        return sum(m.value for m in get_metrics_snapshot() if m.name == "vllm:generation_tokens")

    (worker,) = workers.engines.serving
    return await worker.actor.__ray_call__.remote(read)


def rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def figures(found: Pass) -> dict[str, Any]:
    rollouts = [rollout for group in found.groups.values() for rollout in group.rollouts]
    lengths = [len(rollout.token_ids) for rollout in rollouts if rollout.finish is not FinishReason.ABORT]
    return {
        "seconds": found.seconds,
        "sampled_tokens": found.sampled_tokens,
        "finished_rollouts": len(lengths),
        "finished_tokens": sum(lengths),
        "length_p10_p50_p90": [float(np.percentile(lengths, share)) for share in (10, 50, 90)],
    }


def avoidable(waited: Pass, gamma: float) -> int:
    """Tokens of the samples behind the one that settles its prompt, were samples drawn one after another."""
    tokens = 0
    for group in waited.groups.values():
        solved = 0
        for i, (rollout, result) in enumerate(group.pairs):
            if is_certain(gamma, num_correct=solved, num_graded=i, num_rollouts=NUM_ROLLOUTS):
                tokens += len(rollout.token_ids)
            solved += result.correct
    return tokens


def compared(found: Pass, waited: Pass, gamma: float) -> dict[str, int]:
    """Prompts decided otherwise than by waiting, and finished rollouts that are not the same."""
    other_decisions = other_rollouts = 0
    for key, group in found.groups.items():
        full = waited.groups[key]
        decision, expected = switch(group, gamma, ()), switch(full, gamma, ())
        weights = (decision.rollout_weight, decision.demo_weight)
        other_decisions += weights != (expected.rollout_weight, expected.demo_weight)
        other_rollouts += sum(
            one.finish is not FinishReason.ABORT and not np.array_equal(one.token_ids, other.token_ids)
            for one, other in zip(group.rollouts, full.rollouts, strict=True)
        )
    return {"other_decisions": other_decisions, "other_rollouts": other_rollouts}


def result(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares saved by γ and solve rate, over all batches; whether every prompt was decided the same."""

    def saved(name: str, stage: dict[str, Any], gamma: str) -> float:
        early = sum(batch["early"][gamma][name] for batch in stage["batches"])
        return 1 - early / sum(batch["waited"][name] for batch in stage["batches"])

    def share_avoidable(stage: dict[str, Any], gamma: str) -> float:
        tokens = sum(batch["avoidable_tokens"][gamma] for batch in stage["batches"])
        return tokens / sum(batch["waited"]["sampled_tokens"] for batch in stage["batches"])

    def table(share: Callable[[dict[str, Any], str], float]) -> dict[str, dict[str, float]]:
        return {gamma: {f"{s['solve_rate']:.3f}": share(s, gamma) for s in stages} for gamma in GAMMAS}

    early = [batch["early"][gamma] for stage in stages for batch in stage["batches"] for gamma in GAMMAS]
    return {
        "solve_rates": {stage["model"]: stage["solve_rate"] for stage in stages},
        "tokens_saved": table(partial(saved, "sampled_tokens")),
        "tokens_avoidable": table(share_avoidable),
        "time_saved": table(partial(saved, "seconds")),
        "decisions_equal": not any(figures["other_decisions"] for figures in early),
        "rollouts_equal": not any(figures["other_rollouts"] for figures in early),
    }


if __name__ == "__main__":
    main()
