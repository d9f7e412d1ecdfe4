"""Writes requirements/cpu.lock and requirements/gpu.lock: every package of the two installations, pinned.

    python requirements/lock.py [cpu] [gpu]          (needs pip and a package index; some minutes)

The versions are resolved once, here. `make install` and the images then install them without resolving again,
so that no CUDA build slips in beside the CPU build of torch. Left out of the CPU installation are three packages
that vLLM names but that come as CUDA builds and break `import transformers` beside a CPU torch; text models need
none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# Written by requirements/lock.py; see there.\n"


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
        lock(name, TARGETS[name])


def lock(name: str, target: Target) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), target.torch, f"{ROOT}[{target.extras}]"]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    pins = sorted(
        f"{item['metadata']['name'].lower().replace('_', '-')}=={item['metadata']['version']}"
        for item in installed
        if item["metadata"]["name"].lower() not in target.left_out
    )
    (ROOT / "requirements" / f"{name}.lock").write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{len(pins)} packages pinned in requirements/{name}.lock")


if __name__ == "__main__":
    main()
