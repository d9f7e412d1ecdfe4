"""The commands that `deploy render` prints, given to kubectl and an API server: a run starts, ends, goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kubernetes_server import KubernetesServer, kubernetes
from manifests import DEFINITIONS, ROOT

from hpt_ray.tools.deploy.__main__ import main

NAME = "hpt-ray-quickstart"
pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.skipif(not DEFINITIONS.is_dir(), reason=f"KubeRay's definitions are not at {DEFINITIONS}"),
]


def render(out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """The command that starts the run, and the one with which it goes on."""
    recipe = str(ROOT / "configs" / "quickstart.yaml")
    assert main(["render", "--config", recipe, "--image", "x:1", "--out", str(out), *words]) == 0
    start, go_on = [line.strip() for line in capsys.readouterr().out.splitlines() if "kubectl" in line]
    return start, go_on


def attempt(server: KubernetesServer) -> str:
    return server.objects["RayJob", NAME]["metadata"]["uid"]


def test_a_run_that_failed_goes_on_when_it_is_applied_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, go_on = render(tmp_path / "out", capsys)
    with kubernetes(tmp_path) as (server, environment):

        def shell(command: str) -> str:
            done = subprocess.run(
                command,
                shell=True,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout
            return done.stdout

        assert f"{NAME} created" in shell(start)
        first = attempt(server)
        assert f"{NAME} unchanged" in shell(start)  # a run under way is left alone
        assert attempt(server) == first
        for state in ("Failed", "Complete"):
            server.end(NAME, state)
            before = attempt(server)
            shell(start)
            assert attempt(server) == before  # KubeRay does nothing with a RayJob that has ended
            assert f"{NAME} created" in shell(go_on)
            assert attempt(server) != before
            assert "status" not in server.objects["RayJob", NAME]
        (volumes,) = (
            server.objects["RayJob", NAME]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
                "volumes"
            ],
        )
        (run,) = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        assert "resume: auto" in server.objects["ConfigMap", run]["data"]["run.yaml"]
        again, _ = render(tmp_path / "out", capsys, "run.steps=7")
        assert f"{NAME} configured" in shell(again)
        server.objects.clear()
        assert f"{NAME} created" in shell(go_on)  # it need not be there
