"""Ray's object store is full: what it holds goes to disk, and the run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import TINY, child_environment, run_main
from nodes import cluster

from hpt_ray.observe.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

STORE_MB = 80  # the least that Ray takes is 75
# Another job of the cluster holds nearly all of it, until its input ends.
HOLDER = """
import sys, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False)
held = [ray.put(numpy.ones(2**20)) for _ in range(9)]  # 8 MiB each
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_goes_on_where_the_object_store_is_full(tmp_path):
    with cluster(2, f"--object-store-memory={STORE_MB * 10**6}") as nodes:
        # What is asked and answered goes through the store, however small it is.
        environment = {**nodes.environment, "RAY_max_direct_call_object_size": "1"}
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, nodes.address],
            env=child_environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            words = ["run.steps=3", "rollout.max_off_policy_steps=1", f"run.dir={tmp_path}"]
            finished = run_main([*TINY, *words, f"cluster.address={nodes.address}"], **environment)
        finally:
            holder.kill()
            holder.wait()
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert [line["step"] for line in RunFolder(tmp_path / "latest").read_metrics()] == [1, 2, 3]
        assert spilled(nodes.folder), "the store was never full"


def spilled(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("ray_spilled_objects*/*") if path.is_file()]
