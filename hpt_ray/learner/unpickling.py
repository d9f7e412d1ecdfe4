"""Files of a checkpoint that torch or DeepSpeed pickled: tensors, numbers and a few named classes come from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from hpt_ray.errors import UserError


@contextmanager
def only(parts: Sequence[Any], folder: Path) -> Iterator[None]:
    """While the context lasts, `torch.load` may make these classes besides tensors and numbers.

    Raises `UserError` where a file of `folder` names something else.
    """
    with torch.serialization.safe_globals(list(parts)):
        try:
            yield
        except UnpicklingError as error:
            what = str(error).partition("WeightsUnpickler error: ")[2].partition(" Please use")[0] or str(
                error
            )
            raise UserError(
                f"{folder}: a file there holds more than a training state, and is not loaded: "
                f"{what.strip().splitlines()[0]} Resume only from run folders that are yours."
            ) from error
