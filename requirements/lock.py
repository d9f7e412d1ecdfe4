"""Writes requirements/cpu.lock and requirements/gpu.lock: every package of the two installations, pinned, with hashes.

    python requirements/lock.py [cpu] [gpu]          (needs pip, uv and a package index; some minutes)

The versions are resolved once, here. `make install` and the images then install them without resolving again,
so that no CUDA build slips in beside the CPU build of torch, and pip takes no file whose SHA-256 is not here: those of
the package index for Linux on x86-64 and the Pythons below, source included. Left out of the CPU installation are
three packages that vLLM names but that come as CUDA builds and break `import transformers` beside a CPU torch; text
models need none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# Written by requirements/lock.py; see there.\n"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Some of the packages are there for no other processor, and some wheels for newer systems only.
PLATFORMS = ("x86_64-manylinux_2_28", "x86_64-manylinux_2_39")


@dataclass(frozen=True)
class Target:
    extras: str
    torch: str  # `===` takes the build of the package index, also where others are at hand
    left_out: frozenset[str]


TARGETS = {
    "cpu": Target(
        "cpu,dev", "torch==2.13.0", frozenset({"torchvision", "torchaudio", "torchcodec", "hpt_ray"})
    ),
    "gpu": Target("gpu,trackers", "torch===2.13.0", frozenset({"hpt_ray"})),
}


def main() -> None:
    for name in sys.argv[1:] or TARGETS:
        write(name, resolve(TARGETS[name]))


def resolve(target: Target) -> dict[str, str]:
    """The pins `name==version`, with the SHA-256 of the file that this machine would take."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), target.torch, f"{ROOT}[{target.extras}]"]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    return {
        f"{item['metadata']['name'].lower().replace('_', '-')}=={item['metadata']['version']}": item[
            "download_info"
        ]["archive_info"]["hashes"]["sha256"]
        for item in installed
        if item["metadata"]["name"].lower() not in target.left_out
    }


def write(name: str, pins: dict[str, str]) -> None:
    """The lock file of these pins. A build that is not the package index's, `+cpu`, is the file of this machine."""
    found = {pin: {own} for pin, own in pins.items()}
    for pin, more in hashes_of([pin for pin in pins if "+" not in pin]).items():
        found[pin] |= more
    lines = [" --hash=sha256:".join([pin, *sorted(found[pin])]) for pin in sorted(pins)]
    (ROOT / "requirements" / f"{name}.lock").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"{len(pins)} packages pinned in requirements/{name}.lock")


def hashes_of(pins: list[str]) -> dict[str, set[str]]:
    """The SHA-256 of every file of the package index that pip may take for a pin."""
    found: dict[str, set[str]] = {pin: set() for pin in pins}
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "pins.txt", Path(folder) / "pylock.toml"
        asked.write_text("\n".join(pins))
        for python, platform in product(PYTHONS, PLATFORMS):
            command = [
                sys.executable,
                "-m",
                "uv",
                "pip",
                "compile",
                "--quiet",
                "--no-deps",
                "--generate-hashes",
            ]
            command += ["--python-version", python, "--python-platform", platform]
            command += ["--format", "pylock.toml", "--output-file", str(answer), str(asked)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for package in tomllib.loads(answer.read_text())["packages"]:
                files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
                found[f"{package['name']}=={package['version']}"] |= {
                    file["hashes"]["sha256"] for file in files
                }
            answer.unlink()
    return found


if __name__ == "__main__":
    main()
