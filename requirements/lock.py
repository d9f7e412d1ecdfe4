"""Writes requirements/cpu.lock: every package of the CPU installation, pinned.

    python requirements/lock.py          (needs pip and a package index; about two minutes)

The versions are resolved once, here. `make install` then installs them without resolving again, so that
no CUDA build slips in beside the CPU build of torch. Left out are three packages that vLLM names but that
come as CUDA builds and break `import transformers` beside a CPU torch; text models need none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "hpt_ray"}
TORCH = "torch==2.13.0"
HEADER = "# Written by requirements/lock.py; install with `make install`.\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), TORCH, f"{ROOT}[cpu,dev]"], check=True)
        installed = json.loads(report.read_text())["install"]
    pins = sorted(
        f"{item['metadata']['name'].lower().replace('_', '-')}=={item['metadata']['version']}"
        for item in installed
        if item["metadata"]["name"].lower() not in LEFT_OUT
    )
    (ROOT / "requirements" / "cpu.lock").write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{len(pins)} packages pinned in requirements/cpu.lock")


if __name__ == "__main__":
    main()
