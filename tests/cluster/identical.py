"""Two runs are the same run: numbers, order of prompts, parameters and optimizer state, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from hpt_ray.observe.run_folder import RunFolder

# Numbers that say how long things took.
TIMES = ("time/", "_per_s", "busy_share", "memory/")


def check_identical(one: RunFolder, other: RunFolder, steps: int) -> None:
    """Each step 1 … `steps` once, and all that is known of the two is equal."""
    assert order(one) == order(other)
    ours, theirs = numbers(one), numbers(other)
    assert [line["step"] for line in ours] == list(range(1, steps + 1))
    assert ours == theirs
    last = f"step-{steps:06d}"
    assert same(
        *(load_file(run.checkpoints / last / "hf" / "model.safetensors") for run in (one, other)), last
    )
    compared = 0
    for role in ("learner", "critic"):
        for path in sorted((other.checkpoints / last / role).rglob("*.pt")):
            twin = one.checkpoints / last / path.relative_to(other.checkpoints / last)
            compared += same(
                torch.load(path, weights_only=False), torch.load(twin, weights_only=False), str(path)
            )
    assert compared > 10, "there was no optimizer state to compare"


def order(folder: RunFolder) -> list[tuple[int, str]]:
    """Which prompt was trained on when."""
    lines = (folder.root / "prompt_history.jsonl").read_text().splitlines()
    return [(attempt["step"], attempt["prompt_id"]) for attempt in map(json.loads, lines)]


def numbers(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    return [
        {
            name: value
            for name, value in line.items()
            if not any(part in name for part in TIMES) and not name.startswith(("faults/", "run/"))
        }
        for line in folder.read_metrics()
    ]


def same(one: Any, other: Any, where: str) -> int:
    """Both trees hold the same tensors, bit for bit; how many there were."""
    tensors = dict(leaves(one))
    others = dict(leaves(other))
    assert tensors.keys() == others.keys(), where
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), f"{where}: {name}"
    return len(tensors)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}/{i}")
