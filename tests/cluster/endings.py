"""How a disturbed run ended: every step once, every prompt once, the parameters of an undisturbed run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from hpt_ray.observe.run_folder import RunFolder


def newest(runs: Path) -> RunFolder:
    return RunFolder((runs / "latest").resolve())


def check(folder: RunFolder, undisturbed: RunFolder, *, exactly: bool) -> None:
    """Every step once, every prompt of each step once, the same parameters."""
    steps = [line["step"] for line in undisturbed.read_metrics()]
    assert [line["step"] for line in folder.read_metrics()] == steps == list(range(1, len(steps) + 1))
    assert attempts(folder) == attempts(undisturbed)
    ours, theirs = weights(folder, len(steps)), weights(undisturbed, len(steps))
    if exactly:
        assert torch.equal(ours, theirs)
    else:  # answers that were drawn again were decoded beside others: their log-probs differ in the last bits
        assert torch.linalg.vector_norm(ours - theirs) < 1e-3 * torch.linalg.vector_norm(theirs)


def attempts(folder: RunFolder) -> Counter[tuple[int, str, int]]:
    lines = map(json.loads, (folder.root / "prompt_history.jsonl").read_text().splitlines())
    return Counter((line["step"], line["prompt_id"], line["rollouts"]) for line in lines)


def weights(folder: RunFolder, step: int) -> torch.Tensor:
    state = load_file(folder.checkpoints / f"step-{step:06d}" / "hf" / "model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)])


def faults_of(folder: RunFolder) -> dict[str, int]:
    return json.loads(folder.summary.read_text())["faults"]
