"""What is left of a suite in GPU hours, money and wall time, row by row, before any of it is started.

In: a `Done`. Out: a `Row` for each (model, method), with its tries, runs and evaluations, and the total. Hours are
those of `tools.plan.cost`: a range, of an A100. Wall time is that of the suite's own order: tries, then runs, then
evaluations, each as many at a time as the GPUs hold. A job keeps the GPUs that it asks for; it is planned anew for one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

from hpt_ray.config.load import load_as
from hpt_ray.config.schema import Config
from hpt_ray.data.benchmarks import BENCHMARKS, expand
from hpt_ray.errors import UserError
from hpt_ray.evaluation.schema import EvaluateConfig
from hpt_ray.tools.plan import check_plan, find_shape, make_plan
from hpt_ray.tools.plan.cost import Cost, sampling_costs
from hpt_ray.tools.plan.survey import facts_of
from hpt_ray.tools.suite.matrix import Pair, RunSpec
from hpt_ray.tools.suite.passes import Evaluation
from hpt_ray.tools.suite.runner import Done

GPUS = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Job:
    """One process. `alone_h`: wall hours on a single GPU; None where that cannot hold it."""

    kind: str  # tries, runs, evaluations: none starts before all of the kind before it have ended
    costs: tuple[Cost, Cost, Cost]
    num_gpus: int
    alone_h: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """The jobs of one (model, method), or of the whole suite."""

    pair: Pair
    jobs: Sequence[Job]

    def count(self, kind: str) -> int:
        return sum(job.kind == kind for job in self.jobs)

    def gpu_hours(self, which: int = 1, kind: str = "") -> float:
        """The least, the expected or the most: 0, 1, 2; of all kinds or of one."""
        return sum(job.costs[which].gpu_hours for job in self.jobs if kind in ("", job.kind))

    def wall_h(self, num_gpus: int) -> float | None:
        """Expected hours on so many GPUs; None where a job needs more."""
        total = 0.0
        for kind in dict.fromkeys(job.kind for job in self.jobs):
            jobs = [job for job in self.jobs if job.kind == kind]
            if num_gpus >= max(job.num_gpus for job in jobs):
                slots = num_gpus // max(job.num_gpus for job in jobs)
                total += makespan([job.costs[1].wall / 3600 for job in jobs], slots)
            elif num_gpus == 1 and all(job.alone_h is not None for job in jobs):
                total += sum(job.alone_h or 0.0 for job in jobs)
            else:
                return None
        return total


def makespan(hours: Sequence[float], slots: int) -> float:
    """When the last job ends, each starting in the slot that is free first. Example: `makespan([3, 2, 2], 2) == 4`."""
    ends = [0.0] * slots
    for each in hours:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def rows_of(done: Done) -> list[Row]:
    """What is left, and at the end the sum. Nothing where the suite uses no GPU, or a model's shape is not known."""
    jobs: dict[Pair, list[Job]] = {}
    for kind, runs in (("tries", done.tries), ("runs", done.planned)):
        planned: dict[tuple[Pair, int | None], Job | None] = {}
        for run in runs:
            if run.id not in done.folders:
                key = run.pair, run.number  # seeds cost the same
                if key not in planned:
                    planned[key] = _run_job(kind, run)
                jobs.setdefault(run.pair, []).extend([job] if (job := planned[key]) else [])
    configs = {run.model: run.config for run in done.planned}
    for evaluation in done.evaluations_to_be:
        if not evaluation.is_done:
            job = _evaluation_job(evaluation, configs[evaluation.model])
            jobs.setdefault((evaluation.model, evaluation.method), []).extend([job] if job else [])
    rows = [Row(pair, of_pair) for pair, of_pair in jobs.items() if of_pair]
    return [*rows, Row(("", ""), [job for row in rows for job in row.jobs])] if rows else []


def _run_job(kind: str, run: RunSpec) -> Job | None:
    config = run.config
    shape = find_shape(config.model, config.model.path)
    plan = make_plan(config, shape, facts_of(config, None))
    if plan.costs is None:
        return None
    return Job(kind, plan.costs, round(plan.num_gpus), _alone_h(config))


def _alone_h(config: Config) -> float | None:
    """On one GPU, in turns; with the optimizer in host memory where that is what makes it fit."""
    for alone in _on_one_gpu(config):
        plan = make_plan(alone, find_shape(alone.model, alone.model.path), facts_of(alone, None))
        try:
            check_plan(alone, plan)
        except UserError:
            continue
        return plan.costs[1].wall / 3600 if plan.costs else None
    return None


def _on_one_gpu(config: Config) -> Iterator[Config]:
    config = deepcopy(config)
    config.cluster.colocate, config.cluster.pools = True, {}
    config.rollout.num_workers, config.rollout.tensor_parallel, config.rollout.num_gpus = 1, 1, 1
    config.learner.num_ranks, config.learner.num_gpus, config.learner.sequence_parallel = 1, 1, 1
    yield config
    config.learner.offload_optimizer = True
    yield config


def _evaluation_job(evaluation: Evaluation, trained: Config) -> Job | None:
    """Sampling alone; the number of prompts is the published one."""
    config = load_as(EvaluateConfig, evaluation.config, ["model=-"])
    num_gpus = round(config.rollout.num_workers * config.rollout.num_gpus)
    shape = find_shape(trained.model, trained.model.path)
    if shape is None or not num_gpus:
        return None
    responses: dict[int, float] = {}  # by limit of their tokens
    for row in (BENCHMARKS[name] for name in expand(evaluation.keys["benchmarks"])):
        limit = config.max_response_tokens or row.protocol.max_response_tokens
        samples = evaluation.keys.get("samples") or config.samples or row.samples
        responses[limit] = responses.get(limit, 0) + samples * max(row.published, default=0)
    prompt = trained.data.max_prompt_tokens
    costs = sampling_costs(shape, responses, prompt, num_gpus)
    return Job("evaluations", costs, num_gpus, costs[1].gpu_hours)
