"""The verifier service as a real Ray actor: concurrent callers, a kill meanwhile, no process left behind."""

import time
from contextlib import suppress

import psutil
import pytest
import ray

from hpt_ray.config.schema import RewardConfig
from hpt_ray.reward import GradeItem, Row, VerifierService
from hpt_ray.types import Outcome

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]


def reward_functions() -> list[psutil.Process]:
    """The grading processes that descend from this one, and their keepers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("hpt_ray.reward.pool" in part for part in process.cmdline()):
                found.append(process)
    return found


def test_service_as_an_actor(tmp_path):
    before = {process.pid for process in reward_functions()}
    file = tmp_path / "hang.py"
    file.write_text("import time\ndef hang(response, truth): time.sleep(600)\n")
    config = RewardConfig(functions={"hang": f"python:{file}:hang"}, num_processes=2, timeout_s=3.0)
    service = ray.remote(VerifierService).options(num_cpus=0, max_concurrency=100).remote(config)
    hanging = service.grade.remote([GradeItem("", "1", Row("hang"), True)])
    items = [GradeItem(rf"\boxed{{{i}/{i + 2}}}", repr(i / (i + 2)), Row(), True) for i in range(8)]
    for results in ray.get([service.grade.remote(items) for _ in range(20)], timeout=60):
        assert all(result.correct for result in results)
    [result] = ray.get(hanging, timeout=60)
    assert result.outcome is Outcome.TIMEOUT
    counts = ray.get(service.counts.remote(), timeout=10)
    assert (counts["correct"], counts["timeout"], counts["processes_replaced"]) == (160, 1, 1)

    deadline = time.monotonic() + 10  # the one that was killed is counted before another has come up
    keepers: list[psutil.Process] = []
    while len(keepers) < 2 and time.monotonic() < deadline:
        ours = [process for process in reward_functions() if process.pid not in before]
        ids = {process.pid for process in ours}
        keepers = [process for process in ours if process.ppid() not in ids]
        time.sleep(0.05)
    assert len(keepers) == 2
    ray.kill(service)  # nobody calls close(): the processes must notice by themselves
    _, alive = psutil.wait_procs(ours, timeout=10)
    assert alive == []


def test_mistakes_reach_the_driver():
    service = ray.remote(VerifierService).remote(RewardConfig(function="mth"))
    with pytest.raises(ray.exceptions.RayActorError, match="Did you mean `math`"):
        ray.get(service.counts.remote(), timeout=60)
