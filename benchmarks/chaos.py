"""The small task under every fault of `faults.py`: what gets done, what is lost.

    python benchmarks/chaos.py --minutes 60 --times 10 --out benchmarks/results/chaos.json
    python benchmarks/chaos.py --pages    # write the figures of benchmarks/results/chaos.json into docs/faults.md

Faults happen to a run on two Ray nodes of this machine, in rounds of every kind once, in an order drawn from the seed,
one to three at once; those that last overlap with the next ones. A driver that ends starts again with `resume=auto`.
Then the same run goes undisturbed to the same step. Read from the run folders: steps, what was counted as mended, and
for each fault the time to recover: from the fault until a step is written that was not there before. "Twice" are steps
that were written and, after a fault, computed again; the one under way at the fault is not among them. "Lost" are steps
that are missing from the metrics or there twice in the end, and prompts of a step that were not visited exactly once.
The parameters at the end are compared with those of the undisturbed run.

All of it sees a run folder and a /dev/shm of its own, small disks in memory, so Linux and `unshare` are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from machine import machine, versions, write
from quickstart import between_marks

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from command import MAIN, child_environment  # noqa: E402
from endings import newest, weights  # noqa: E402
from faults import FAULTS, SHM, Target, Undo, disk  # noqa: E402
from killer import steps_done  # noqa: E402
from nodes import Nodes, cluster  # noqa: E402

from hpt_ray.observe.run_folder import RunFolder, read_json_lines  # noqa: E402

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
PAUSE_S = (2.0, 10.0)  # between a recovery and the next faults
TOGETHER = (1, 2, 3)  # faults at once
LIMIT_S = 900.0  # for a recovery
PROMPTS = 8
DISK, SHM_SIZE = "128m", "512m"
RESULT, PAGE = ROOT / "benchmarks" / "results" / "chaos.json", ROOT / "docs" / "faults.md"
STORE = "--object-store-memory=100000000"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--times",
        type=int,
        default=0,
        help="go on until every kind came so often, a third longer at most",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS), help="kinds of faults")
    parser.add_argument("--pages", action="store_true", help="only write the page again")
    arguments = parser.parse_args()
    if arguments.pages:
        PAGE.write_text(
            page(PAGE.read_text(encoding="utf-8"), json.loads(RESULT.read_text())), encoding="utf-8"
        )
        return
    if "HPT_RAY_CHAOS" not in os.environ:  # again, where mounts are seen by nobody else
        os.environ["HPT_RAY_CHAOS"] = "1"
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv])
    report: dict[str, Any] = {
        "benchmark": "chaos",
        "versions": versions(),
        "machine": machine(),
        "settings": {
            "overrides": words(),
            "pause_s": PAUSE_S,
            "together": TOGETHER,
            "environment": ENVIRONMENT,
            "disk": DISK,
            "shm": SHM_SIZE,
            "faults": {kind: {"lasts_s": FAULTS[kind].lasts_s} for kind in arguments.only},
            **{
                name: value for name, value in vars(arguments).items() if name not in ("out", "only", "pages")
            },
        },
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        disk(SHM, SHM_SIZE),
        disk(Path(folder, "runs"), DISK) as runs,
        cluster(3, STORE, "--include-dashboard=false", **ENVIRONMENT) as nodes,
    ):
        disturbed = Disturbed(runs, nodes, random.Random(arguments.seed), arguments.only)
        raw: dict[str, Any] = {}
        try:
            try:
                disturbed.go_on(arguments.minutes * 60, arguments.times)
            finally:
                raw["disturbed"] = disturbed.figures()
            quiet = Path(folder, "undisturbed")
            raw["undisturbed"] = undisturbed(quiet, nodes, disturbed.last_step)
            raw["distance"] = distance(runs, quiet, disturbed.last_step)
        except Exception as error:  # a run that a fault has ended is a result too
            traceback.print_exc()
            report["failed"] = f"{type(error).__name__}: {error}"
    report |= {"raw": raw, "result": result(raw)}
    write(arguments.out, report)
    sys.exit(report.get("failed"))


def words() -> list[str]:
    """More steps than time; two engines, so that one can be missed; a reference, so that there is one to lose.

    One rank's node is the second one: the first has no room for both. What a rounded log-prob of a response that was
    generated again could change is computed by the learner, so that the parameters can be compared bit for bit.
    """
    return [
        "run.steps=100000",
        "run.deterministic=true",
        f"prompts_per_step={PROMPTS}",
        "group_size=4",
        "algorithm.kl_coef=0.001",
        "rollout.num_workers=2",
        "rollout.num_cpus=0.5",
        "rollout.start_timeout_s=900",
        "reference.num_cpus=0",
        "learner.num_ranks=2",
        "learner.num_cpus=2",
        "learner.recompute_old_logprobs=true",
        "learner.max_restarts=10",
        "checkpoint.every=5",
        "checkpoint.keep=3",
        "evaluation.sets={}",
        "evaluation.every=0",
        "observe.samples_every=0",
    ]


def start(runs: Path, nodes: Nodes, said: Path, *more: str) -> subprocess.Popen[bytes]:
    with said.open("w") as output:
        return subprocess.Popen(
            [*MAIN, *words(), *more, f"run.dir={runs}", f"cluster.address={nodes.address}", "resume=auto"],
            cwd=ROOT,
            env=child_environment(**nodes.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


class Disturbed:
    """One run, through as many driver processes as it takes."""

    def __init__(self, runs: Path, nodes: Nodes, rng: random.Random, kinds: list[str]):
        self._runs, self._random, self._kinds = runs, rng, kinds
        self._said = Path(tempfile.mkdtemp())
        numbers = count()

        def one_more() -> tuple[subprocess.Popen[bytes], Path]:
            said = self._said / f"driver-{next(numbers)}.txt"
            return start(runs, nodes, said), said

        second = nodes.start(2, f"--address={nodes.address}", STORE)
        self.target = Target(runs, nodes, second, rng, one_more, self._undo_due)
        self._undo: list[tuple[float, str, Undo]] = []  # when it is due, of which fault
        self._faults: list[dict[str, Any]] = []
        self._ends: list[dict[str, Any]] = []  # of drivers, by themselves
        self._twice = 0
        self._seconds = 0.0

    def go_on(self, seconds: float, times: int) -> None:
        self._wait_for_step(0)
        begin = time.monotonic()
        deck: list[str] = []
        try:
            while (done := time.monotonic() - begin) < seconds or (
                self._fewest < times and done < 4 / 3 * seconds
            ):
                deck = deck or self._random.sample(self._kinds, len(self._kinds))
                together = [deck.pop() for _ in range(min(len(deck), self._random.choice(TOGETHER)))]
                self._strike([kind for kind in FAULTS if kind in together])
                until = time.monotonic() + self._random.uniform(*PAUSE_S)
                while time.monotonic() < until:
                    self._look_after()
            self._undo_all()
            self._wait_for_step(self.last_step)  # so that it is up, and ends in order
        finally:
            self._seconds = time.monotonic() - begin
            self._undo_all()
            self.target.driver.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.target.driver.wait(timeout=LIMIT_S)
            self.target.driver.kill()

    def _strike(self, kinds: list[str]) -> None:
        """Faults at once, and the time until a step is written that was not there before."""
        step, begin, records = self.last_step, time.monotonic(), []
        for kind in kinds:
            record: dict[str, Any] = {"kind": kind, "step": step, "load_1min": round(os.getloadavg()[0], 1)}
            self._faults.append(record)
            try:
                undo = FAULTS[kind].do(self.target)
            except (psutil.NoSuchProcess, OSError) as error:  # another fault has it
                record["missed"] = f"{error}"
                continue
            records.append(record)
            if undo is not None:
                self._undo.append((time.monotonic() + FAULTS[kind].lasts_s, kind, undo))
        step = max(step, self.last_step)  # the run may have gone on before it came to that
        went_back_to = self._wait_for_step(step)
        for record in records:
            record |= {"recovered_s": time.monotonic() - begin, "together": len(records)}
        self._twice += step - went_back_to
        print(json.dumps(records), flush=True)

    def _look_after(self) -> None:
        """Undo what is due; start an ended driver again, after what made it end is undone."""
        self._undo_due()
        if (code := self.target.driver.poll()) is not None:
            if code >= 0:
                self._by_itself(code)
            self._undo_all()
            self.target.driver, _ = self.target.start()
        time.sleep(0.2)

    def _undo_due(self) -> None:
        for each in [each for each in self._undo if each[0] <= time.monotonic()]:
            self._undo.remove(each)
            each[-1]()

    def _by_itself(self, code: int) -> None:
        printed = max(self._said.iterdir(), key=lambda path: path.stat().st_mtime).read_text()
        said = [line for line in printed.splitlines() if line.startswith("failed:")]
        during = [kind for _, kind, _ in self._undo] or [fault["kind"] for fault in self._faults[-1:]]
        self._ends.append({"code": code, "during": during, "step": self.last_step, "said": said})
        print(json.dumps(self._ends[-1]), flush=True)
        if [end["step"] for end in self._ends[-4:]] == 4 * [self.last_step]:
            raise RuntimeError(f"the run ends again and again: {said}")

    def _undo_all(self) -> None:
        while self._undo:
            self._undo.pop()[-1]()

    def _wait_for_step(self, before: int) -> int:
        """Until a step after `before` is written; the step from which the run went on."""
        lowest, deadline = before, time.monotonic() + LIMIT_S
        while (step := self.last_step) <= before:
            lowest = min(lowest, step)
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step after {before} is written any more")
            self._look_after()
        return lowest

    @property
    def _fewest(self) -> int:
        """Of any kind."""
        caused = Counter(fault["kind"] for fault in self._faults if "missed" not in fault)
        return min(caused[kind] for kind in self._kinds)

    @property
    def last_step(self) -> int:
        return steps_done(self._runs)

    def figures(self) -> dict[str, Any]:
        return {
            "seconds": self._seconds,
            **counted(self.target.folder),
            "steps_twice": self._twice,
            "faults": self._faults,
            "ended_by_themselves": self._ends,
        }


def undisturbed(runs: Path, nodes: Nodes, steps: int) -> dict[str, Any]:
    """The same run without a fault, to the same step."""
    said = runs.with_name("undisturbed.txt")
    process = start(runs, nodes, said, f"run.steps={steps}")
    while process.poll() is None and steps_done(runs) == 0:
        time.sleep(0.05)
    begin = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError(said.read_text())
    return {"seconds": time.monotonic() - begin, **counted(newest(runs))}


def distance(runs: Path, others: Path, step: int) -> float:
    """Between the parameters of two runs, over the norm of those of the other."""
    ours, theirs = weights(newest(runs), step), weights(newest(others), step)
    return float((ours - theirs).norm() / theirs.norm())


def counted(folder: RunFolder) -> dict[str, Any]:
    """Steps and prompts, and what was mended, from a run folder."""
    lines = folder.read_metrics()
    steps = Counter(line["step"] for line in lines)
    attempts = Counter(line["step"] for line in read_json_lines(folder.prompt_history))
    mended: Counter[str] = Counter()
    for line in lines:
        mended.update({k: v for k, v in line.items() if k.startswith("faults/")})
    last = max(steps, default=0)
    return {
        "steps": last,
        "steps_missing_or_twice": sum(steps[step] != 1 for step in range(1, last + 1)),
        "steps_with_other_than_all_prompts": sum(attempts[s] != PROMPTS for s in range(1, last + 1)),
        "mended_in_lines": dict(mended),
    }


def result(raw: dict[str, Any]) -> dict[str, Any]:
    disturbed = raw["disturbed"]
    done = [fault for fault in disturbed["faults"] if "recovered_s" in fault]
    by_kind = {
        kind: [fault["recovered_s"] for fault in done if fault["kind"] == kind]
        for kind in sorted({fault["kind"] for fault in done})
    }
    found = {
        "steps": disturbed["steps"],
        "steps_computed_twice": disturbed["steps_twice"],
        "faults": {kind: len(each) for kind, each in by_kind.items()},
        "mean_seconds_to_recover": {kind: fmean(each) for kind, each in by_kind.items()},
        "longest_seconds_to_recover": {kind: max(each) for kind, each in by_kind.items()},
        "drivers_ended_by_themselves": len(disturbed["ended_by_themselves"]),
        "nothing_lost": not (
            disturbed["steps_missing_or_twice"] or disturbed["steps_with_other_than_all_prompts"]
        ),
    }
    if "distance" in raw:
        undisturbed = raw["undisturbed"]
        rate = undisturbed["steps"] / undisturbed["seconds"]
        found |= {
            "steps_over_undisturbed": disturbed["steps"] / disturbed["seconds"] / rate,
            "seconds_per_step_undisturbed": 1 / rate,
            "parameters_equal": raw["distance"] == 0.0,
            "relative_distance_of_parameters": raw["distance"],
        }
    return found


def page(text: str, report: dict[str, Any]) -> str:
    """docs/faults.md with the report's figures between its marks."""
    found, disturbed = report["result"], report["raw"]["disturbed"]
    loads = [fault["load_1min"] for fault in disturbed["faults"]]
    faults = sum(found["faults"].values())
    lost = "nothing was lost" if found["nothing_lost"] else "SOMETHING WAS LOST"
    equal = "are those of the undisturbed run, bit for bit" if found["parameters_equal"] else "DIFFER"
    minutes, cores = disturbed["seconds"] / 60, report["machine"]["num_cpus"]
    twice, ended = found["steps_computed_twice"], found["drivers_ended_by_themselves"]
    pace, step_s = found["steps_over_undisturbed"], found["seconds_per_step_undisturbed"]
    lines = [
        f"{minutes:.0f} minutes on {cores} cores at a load of {fmean(loads):.1f} on average, {found['steps']:,} steps, "
        f"{faults} faults: **{lost}.**",
        "Every step is in the metrics once, every prompt of every step was attempted once, and the parameters",
        f"{equal}. The run kept {pace:.0%} of the undisturbed pace ({step_s:.2f} s a step)",
        f"and computed {twice:,} steps twice. {ended} drivers ended by themselves and were started again"
        + (":" if ended else "."),
        "",
        *(f"- {sentence}" for sentence in ends(disturbed["ended_by_themselves"])),
        "",
        "| fault | times | seconds until a new step is done, mean (longest) | where it came alone |",
        "|---|---:|---:|---:|",
    ]
    for kind, times in found["faults"].items():
        mean, longest = (found[f"{which}_seconds_to_recover"][kind] for which in ("mean", "longest"))
        alone = [
            f["recovered_s"] for f in disturbed["faults"] if f["kind"] == kind and f.get("together") == 1
        ]
        by_itself = f"{fmean(alone):.1f} ({max(alone):.1f})" if alone else "–"
        lines.append(f"| {kind} | {times} | {mean:.1f} ({longest:.1f}) | {by_itself} |")
    return between_marks(text, "\n".join(lines) + "\n", of=RESULT.name)


def ends(drivers: list[dict[str, Any]]) -> list[str]:
    """What they said, and how often; numbers aside."""
    said = Counter(re.sub(r"\d+", "N", " ".join(end["said"]) or f"code {end['code']}") for end in drivers)
    return [f"{count} × `{sentence.removeprefix('failed: ')}`" for sentence, count in said.most_common()]


if __name__ == "__main__":
    main()
