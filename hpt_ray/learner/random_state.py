"""The random generators of a rank: Python's, numpy's and torch's, as numbers that JSON can hold."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from hpt_ray.learner.unpickling import only

# What the file of an older version names: it was pickled, and nothing else is made from it.
_OLD_PARTS: list[Any] = [_reconstruct, np.ndarray, np.dtype, np.dtypes.UInt32DType]


def seed(number: int) -> None:
    """Start all of them anew."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def current() -> dict[str, Any]:
    name, keys, *place = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *place],
    }


def set_to(states: dict[str, Any]) -> None:
    """What `current` gave, also after JSON, and that of older versions."""
    version, numbers, gauss = states["python"]
    torch.set_rng_state(torch.as_tensor(states["torch"], dtype=torch.uint8))
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))


def write(folder: Path, rank: int) -> None:
    _file(folder, rank).write_text(json.dumps(current()), encoding="utf-8")


def read(folder: Path, rank: int) -> bool:
    """Be as the rank was; whether it is in the checkpoint."""
    old = folder / f"random-{rank}.pt"
    if _file(folder, rank).is_file():
        set_to(json.loads(_file(folder, rank).read_text(encoding="utf-8")))
    elif old.is_file():
        with only(_OLD_PARTS, folder):
            set_to(torch.load(old, weights_only=True))
    else:
        return False
    return True


def _file(folder: Path, rank: int) -> Path:
    return folder / f"random-{rank}.json"
