"""`python -m hpt_ray.cli.replay RUN step=K [tolerance=1e-5] [key=value …]`

Computes step K of a run again and says whether the gradient is the same. The learner starts from the newest
checkpoint before step K, else from the initial model, trains on the dumped rollouts of each step up to K, and
what each update comes to is compared with the step's line in metrics.jsonl. Nothing is sampled or graded,
and nothing in the run folder changes but `logs/replay`. `key=value` replaces keys of the run's config.yaml.

Exit code 0: the same. 1: not the same, or a failure that is named on stderr. 2: the user must change something.
130: stopped by Ctrl-C, 143: by SIGTERM.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hpt_ray.utils import signals

if __name__ == "__main__":
    signals.watch()  # while the rest is imported, too

from hpt_ray.cluster.process import QUIET

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

from hpt_ray.algorithms.gates import samples_of  # noqa: E402
from hpt_ray.checkpoint.state import read_state  # noqa: E402
from hpt_ray.checkpoint.store import CheckpointStore  # noqa: E402
from hpt_ray.cli.mini_base import model_folder, with_reference  # noqa: E402
from hpt_ray.cluster.runtime import Cluster  # noqa: E402
from hpt_ray.config.checks import check_config  # noqa: E402
from hpt_ray.config.load import load_run_config  # noqa: E402
from hpt_ray.config.schema import Config  # noqa: E402
from hpt_ray.data import mini  # noqa: E402
from hpt_ray.data.mini.base import tokenizer_path  # noqa: E402
from hpt_ray.driver.actors import learner_of, start_actors  # noqa: E402
from hpt_ray.driver.checkpoint_manager import CheckpointManager, Saved  # noqa: E402  (after the environment is set)
from hpt_ray.driver.setup import Prepared, PreparedPhase, prepare, roles_of  # noqa: E402
from hpt_ray.driver.step_metrics import Pairs, learner_metrics  # noqa: E402
from hpt_ray.errors import Stopped, UserError, exit_code  # noqa: E402
from hpt_ray.learner.group import LearnerGroup  # noqa: E402
from hpt_ray.learner.schedule import learning_rates  # noqa: E402
from hpt_ray.observe.console import CommandConsole  # noqa: E402
from hpt_ray.observe.rollout_dump import dump_of, ids_of_prompts, read_pairs  # noqa: E402
from hpt_ray.observe.run_folder import RunFolder  # noqa: E402
from hpt_ray.types import UpdateResult  # noqa: E402
from hpt_ray.utils import arguments, plugins  # noqa: E402

SINCE_0_2 = {"loss/total"}  # runs of before do not have it
COMPARED = (
    "optim/",
    "policy/",
    "loss/",
    "critic/",
    "learner/demo_loss",
    "learner/rehearsal_loss",
    "learner/skipped_",
)


@dataclass(frozen=True)
class Plan:
    """Which steps are computed again, and from where."""

    folder: RunFolder
    config: Config
    tolerance: float
    start: Path | None  # checkpoint; None: the initial model
    lines: dict[int, dict[str, Any]]  # of metrics.jsonl, by the steps to be computed, in their order


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one step, as it was recorded and as it came out now. None: there was none."""

    name: str
    recorded: float | None
    replayed: float | None

    @property
    def relative(self) -> float:
        """|a − b| over the larger of |a| and |b|; but for norms, over 1 at least.

        Log-probs, shares and scores are of the order of 1: what is far smaller, such as the gap between
        sampler and learner, is rounding, and has no digits that could be compared.
        """
        if self.recorded is None or self.replayed is None:
            return 0.0 if self.recorded is self.replayed else math.inf
        floor = 0.0 if self.name.endswith("grad_norm") else 1.0
        scale = max(abs(self.recorded), abs(self.replayed), floor)
        return abs(self.recorded - self.replayed) / scale if scale else 0.0


def main(words: list[str] | None = None) -> int:
    console = CommandConsole()
    plan: Plan | None = None
    try:
        plan = parse(words)
        prepared = prepare(plan.config, tokenizer_path(plan.config.model.path))
        return 0 if asyncio.run(run(plan, prepared, console)) else 1
    except Stopped as stopped:
        signals.say(f"{stopped}")
        return signals.exit_code()
    except Exception as error:
        return exit_code(error, None if plan is None else replay_logs(plan.folder))


def parse(words: list[str] | None) -> Plan:
    options = arguments.replay(words)
    own = dict(word.split("=", 1) for word in options.words if word.startswith(("step=", "tolerance=")))
    try:
        step, tolerance = int(own["step"]), float(own.get("tolerance", "1e-5"))
    except (KeyError, ValueError) as error:
        raise UserError("Say which step: step=K, a whole number; tolerance=T is a number.") from error
    folder = RunFolder(Path(options.run).resolve())
    if not folder.config.is_file():
        raise UserError(f"{options.run}: not a run folder (no config.yaml in it).")
    overrides = [word for word in options.words if not word.startswith(("step=", "tolerance="))]
    config = load_run_config(folder.config, overrides)
    config.run.plugins = plugins.load(config.run.plugins)
    check_config(config)
    return make_plan(folder, config, step, tolerance)


def make_plan(folder: RunFolder, config: Config, step: int, tolerance: float) -> Plan:
    """Find the checkpoint to start from and the dumps up to `step`; UserError where one is missing."""
    lines = {line["step"]: line for line in folder.read_metrics() if line["step"] > 0}
    if step not in lines:
        there = f"it has steps {min(lines)} to {max(lines)}" if lines else "it has no step at all"
        raise UserError(f"{folder.metrics} has no step {step}: {there}.")
    store = CheckpointStore(folder.checkpoints, keep=0)
    start = store.latest(up_to=step - 1).path
    first = 1 + (read_state(start).step if start else 0)
    missing = [number for number in range(first, step + 1) if not dump_of(folder.rollouts, number).is_file()]
    if missing:
        origin = f"the checkpoint of step {first - 1}" if start else "the initial model"
        raise UserError(
            f"{dump_of(folder.rollouts, missing[0])} is missing. A replay of step {step} starts from {origin} "
            f"and needs the rollouts of every step from {first} on; this run has observe.rollouts_every="
            f"{config.observe.rollouts_every}. {_advice(folder, store, lines)}"
        )
    return Plan(folder, config, tolerance, start, {n: lines[n] for n in range(first, step + 1)})


def _advice(folder: RunFolder, store: CheckpointStore, lines: Mapping[int, Any]) -> str:
    starts = {0, *store.steps()}
    can = []
    for step in sorted(lines):
        first = 1 + max(start for start in starts if start < step)
        if all(dump_of(folder.rollouts, n).is_file() for n in range(first, step + 1)):
            can.append(str(step))
    if can:
        return f"Steps that can be replayed: {', '.join(can)}."
    return "To replay a run, make it with observe.rollouts_every=1, or with a checkpoint before such a step."


async def run(plan: Plan, prepared: Prepared, console: Console) -> bool:
    """Replay, and show what came out. Whether every step was the same."""
    cluster = Cluster.connect(plan.config.cluster)
    try:
        model_path = prepared.model_path
        if mini.is_mini(plan.config.model.path):
            model_path = str(await model_folder(plan.config.model.path, cluster, console))
        plan = replace(plan, config=await with_reference(plan.config, cluster, console))
        origin = plan.start.name if plan.start else "the initial model"
        console.print(f"Replay of {plan.folder.root} from {origin}", highlight=False, soft_wrap=True)
        last = max(plan.lines)
        all_same = True
        async for step, metrics in replayed_steps(plan, prepared, model_path, cluster):
            differences = compare(plan.lines[step], metrics)
            is_same = max(d.relative for d in differences) <= plan.tolerance
            if step == last or not is_same:
                console.print(table_of(step, differences, plan.tolerance))
            console.print(f"Step {step}: {result(differences, plan.tolerance)}", highlight=False)
            all_same &= is_same
        return all_same
    finally:
        cluster.close()


async def replayed_steps(
    plan: Plan, prepared: Prepared, model_path: str, cluster: Cluster
) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Train through the plan's steps; after each, what its updates came to."""
    config = plan.config
    logs = replay_logs(plan.folder)
    actors = await start_actors(
        cluster,
        config,
        model_path=model_path,
        roles=replace(roles_of(config), rollouts=False),
        logs=logs,
    )
    try:
        if plan.start is not None:
            checkpoints = CheckpointManager(
                CheckpointStore(plan.folder.checkpoints, keep=0), timeout_s=config.learner.timeout_s
            )
            await checkpoints.load(actors, Saved(plan.start, read_state(plan.start)))
        for phase in prepared.phases:
            steps = [step for step in plan.lines if phase.before < step <= phase.last]
            if not steps:
                continue
            learner = await learner_of(phase, actors, begins=steps[0] == phase.before + 1)
            files = {step: dump_of(plan.folder.rollouts, step) for step in steps}
            ids = {name for file in files.values() for name in ids_of_prompts(file)}
            prompts = {prompt.id: prompt for prompt in phase.prompts if prompt.id in ids}
            for step, file in files.items():
                updates = await train_step(phase, learner, step, read_pairs(file, prompts))
                rate, _ = learning_rates(phase, step, len(updates) - 1)
                yield step, learner_metrics(updates) | {"optim/lr": rate}
    finally:
        actors.stop()
        cluster.release()


async def train_step(
    phase: PreparedPhase, learner: LearnerGroup, step: int, pairs: Pairs
) -> list[UpdateResult]:
    """The updates of one step, on its groups in the order in which they came."""
    config = phase.config
    per_update = config.prompts_per_step // config.updates_per_step
    learner.begin_step(step - phase.before - 1)
    trained = [pair for pair in pairs if pair[1].reason != "replaced"]
    for i, (group, decision) in enumerate(trained):
        samples = samples_of(group, decision, index=i + 1, prefixes=phase.estimator.trains_prefixes)
        learner.add(samples, update=i // per_update)
    updates = []
    for update in range(config.updates_per_step):
        learner.rehearse(phase.rehearsed(step, update))
        updates.append(await learner.finish(*learning_rates(phase, step, update)))
    return updates


def replay_logs(folder: RunFolder) -> Path:
    logs = folder.logs / "replay"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


# -- comparing -------------------------------------------------------------------------------------


def compare(recorded: Mapping[str, Any], replayed: Mapping[str, Any]) -> list[Difference]:
    """What an update came to, number by number; times and throughput are left out."""
    new = {name for name in SINCE_0_2 if recorded.get(name) is None}
    names = [name for name in replayed if name.startswith(COMPARED) and name not in new]
    return [Difference(name, _finite(recorded.get(name)), _finite(replayed[name])) for name in names]


def _finite(value: Any) -> float | None:
    """As metrics.jsonl has it: null for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def result(differences: list[Difference], tolerance: float) -> str:
    """In words. Example: `the same to 7 digits`."""
    worst = max(differences, key=lambda difference: difference.relative)
    if worst.relative == 0:
        return "the same in every digit"
    if worst.relative <= tolerance:
        return f"the same to {math.floor(-math.log10(worst.relative))} digits"
    return f"not the same: {worst.name} differs by {worst.relative:.1e} (tolerance {tolerance:g})"


def table_of(step: int, differences: list[Difference], tolerance: float) -> Table:
    table = Table("metric", title=f"Step {step}", title_justify="left")
    for header in ("recorded", "replayed", "relative difference"):
        table.add_column(header, justify="right")
    for d in differences:
        style = "red" if d.relative > tolerance else None
        table.add_row(d.name, _number(d.recorded), _number(d.replayed), f"{d.relative:.1e}", style=style)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.9g}"


if __name__ == "__main__":
    sys.exit(main())
