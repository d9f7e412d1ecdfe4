"""Rollout workers and learner ranks in turns (`cluster.colocate`): the same numbers, in turns indeed.

On CPUs vLLM's sleep and DeepSpeed's offload free nothing, but every call of them is made. What a GPU would add is
in docs/placement.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import MAIN, ROOT, TINY, child_environment, write_reward_function
from killer import Fault, Killer
from pair import Pair, starting
from plain import distance, make_samples
from probe import call
from safetensors.numpy import load_file

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(640)]

FEW = [((1, 0), False), ((), True), ((0, 1), True)]
STEPS = 3
LIMIT_S = 300.0  # of one run, with its restarts


# -- the learner's side ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(ray_cluster, tiny_model) -> Iterator:
    with starting(tiny_model) as start:
        yield start


@pytest.mark.parametrize(
    ("stage", "offload_optimizer", "dtype"),
    [
        (1, False, "float32"),
        (2, False, "bfloat16"),
        (2, True, "float32"),
        (3, False, "float32"),
        (3, False, "bfloat16"),
        (3, True, "float32"),
    ],
)
def test_offload_and_reload_change_no_number(start, tmp_path, stage, offload_optimizer, dtype):
    """Two steps, save, load in ranks that begin anew, a third step: with and without the way through the host."""

    def train(folder: Path, *, moves: bool) -> list:
        def fresh() -> Pair:
            return start(2, stage, offload_optimizer=offload_optimizer, dtype=dtype)

        pair = fresh()
        samples = [make_samples(pair.plain, FEW, seed=seed) for seed in (30, 31, 32)]
        for prompts in samples[:2]:
            if moves:
                call(pair.ranks, "reload")
            assert pair.learn(prompts).skipped is None
            if moves:
                call(pair.ranks, "offload")
                call(pair.ranks, "offload")  # a second time is no harm
        call(pair.ranks, "save", str(folder))
        if moves:
            call(pair.ranks, "reload")
        went_on = pair.learn(samples[2]).metrics["optim/grad_norm"], call(pair.ranks, "parameters")[0]
        pair = fresh()
        call(pair.ranks, "load", str(folder))
        loaded = pair.learn(samples[2]).metrics["optim/grad_norm"], call(pair.ranks, "parameters")[0]
        assert went_on[0] == loaded[0]
        assert distance(went_on[1], loaded[1]) == 0
        return [went_on[0], went_on[1]]

    norms, parameters = zip(
        *(train(tmp_path / f"{moves}", moves=moves) for moves in (False, True)), strict=True
    )
    assert norms[0] == norms[1]
    assert distance(*parameters) == 0


# -- the whole loop --------------------------------------------------------------------------------


def run(
    name: str, reward_function: str, runs: Path, *words: str, faults: tuple[Fault, ...] = ()
) -> RunFolder:
    """A deterministic run of 2 engines and 2 ranks; checks that the faults took place."""
    arguments = [
        *TINY, f"run.steps={STEPS}", "run.deterministic=true",
        f"reward.function={reward_function}", "checkpoint.every=1",
        "rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=2", f"run.dir={runs / name}", *words,
    ]  # fmt: skip
    process = subprocess.Popen(
        [*MAIN, *arguments],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killer = Killer(process.pid, runs / name, list(faults), seed=0)
    killer.start()
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert killer.killed == [fault.victim for fault in faults]
    return RunFolder((runs / name / "latest").resolve())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[RunFolder, RunFolder]:
    """One run apart; one in turns, over ipc, that loses a rank while engines generate, and at the end an engine
    asleep.
    """
    runs = tmp_path_factory.mktemp("turns")
    reward_function = write_reward_function(runs)
    faults = (
        Fault(1, "ray::LearnerWorker", "ray::RolloutWorker"),
        Fault(2, "ray::RolloutWorker", "ray::LearnerWorker.accumulate"),
    )
    apart = run("apart", reward_function, runs)
    return apart, run(
        "turns",
        reward_function,
        runs,
        "cluster.colocate=true",
        "cluster.take_turns=true",
        "weight_sync.backend=ipc",
        "checkpoint.in_memory_every=1",
        faults=faults,
    )


def test_turns_and_faults_change_no_number(folders):
    apart, turns = (
        load_file(*folder.checkpoints.glob(f"step-{STEPS:06d}/**/*.safetensors")) for folder in folders
    )
    assert apart.keys() == turns.keys()
    assert all((apart[name] == turns[name]).all() for name in apart)
    first, second = (folder.read_metrics() for folder in folders)
    assert [line["reward/mean"] for line in first] == [line["reward/mean"] for line in second]
    faults = json.loads((folders[1].root / "summary.json").read_text())["faults"]
    assert (faults["learner_restarted"], faults["rollout_failed"]) == (1, 1)


def test_sides_that_both_stay_change_no_number(folders, tmp_path):
    """On CPUs there is room for both, and so no turns."""
    beside = run("beside", write_reward_function(tmp_path), tmp_path, "cluster.colocate=true")
    one, other = (
        load_file(*folder.checkpoints.glob(f"step-{STEPS:06d}/**/*.safetensors"))
        for folder in (folders[0], beside)
    )
    assert all((one[name] == other[name]).all() for name in one)
    assert not {"offload", "reload", "sleep"} & {
        event["name"] for event in json.loads(beside.trace.read_text())
    }


def test_nobody_generates_while_the_learner_has_the_gpus(folders):
    """From the end of a sleep to the next waking there is no decoding, and all training is in there."""
    events = [event for event in json.loads(folders[1].trace.read_text()) if event.get("ph") == "X"]
    spans = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in events]
    backward = [(begin, end) for name, begin, end in spans if name in ("backward", "step")]
    generate = [(begin, end) for name, begin, end in spans if name == "generate"]
    assert backward
    assert generate
    assert {"sleep", "wake", "offload", "reload"} <= {name for name, *_ in spans}
    for begin, end in backward:
        assert all(end <= other_begin or other_end <= begin for other_begin, other_end in generate)


# -- GPUs, as Ray deals them out -------------------------------------------------------------------

DEAL = """
import asyncio, os
from hpt_ray.cluster.process import prepare_process
from hpt_ray.cluster.runtime import Cluster
from hpt_ray.driver.actors import resource_requests
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.driver.setup import roles_of

class Actor:
    def __init__(self):
        prepare_process(threads=1)

    def visible_gpus(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

config = load_config(None, [
    "model.path=m", "data.train=[a.parquet]", "cluster.colocate=true", "rollout.num_workers=2",
    "rollout.tensor_parallel=2", "rollout.num_gpus=2", "rollout.num_cpus=1", "learner.num_ranks=4",
    "learner.num_gpus=1", "learner.num_cpus=0.5",
])
cluster = Cluster.connect(ClusterConfig(address="local"))
asked = resource_requests(config, roles_of(config))
asyncio.run(cluster.reserve(asked, timeout_s=20, name="t"))
from hpt_ray.driver.actors import gpus_of_engines
ranks = cluster.create("learner", Actor, [()] * 4)
engines = cluster.create("rollout", Actor, [()] * 2)
print("GPUS", *asyncio.run(gpus_of_engines(config, ranks)))
print("ENGINES", asyncio.run(engines.call("visible_gpus", timeout_s=20)))
cluster.close()
"""


@pytest.mark.parametrize(
    "told", [{}, {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}], ids=["", "noset"]
)
def test_an_engine_gets_the_gpus_of_the_ranks_in_its_bundle(told):
    """Four GPUs that Ray believes in: bundles of two, each for two ranks and one engine, which reserves none."""
    finished = subprocess.run(
        [sys.executable, "-c", DEAL],
        cwd=ROOT,
        env=child_environment(RAY_OVERRIDE_RESOURCES='{"CPU": 4, "GPU": 4}', **told),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    lines = dict(line.split(" ", 1) for line in finished.stdout.splitlines() if line[:4] in ("GPUS", "ENGI"))
    gpus = [engine.split(",") for engine in lines["GPUS"].split()]
    assert [len(engine) for engine in gpus] == [2, 2]
    assert sorted(gpus[0] + gpus[1]) == ["0", "1", "2", "3"]
    assert lines["ENGINES"] == "['', '']"
