"""A gradient of any size as a short vector that keeps inner products, by random signs and places.

It is the count sketch (Charikar, Chen and Farach-Colton, 2002): every number goes, with a random sign, to one of D
places and is added to what is there. For any two gradients E⟨Sx, Sy⟩ = ⟨x, y⟩, with a standard deviation of at most
√(2/D) of the product of their lengths. Signs and places follow from the seed and a parameter's name alone. The sketch
is linear: those of parameters, and of the parts of a sum, add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class Projection:
    """Projects gradients to `dimensions` numbers. A parameter of at most so many only changes places and signs."""

    def __init__(self, dimensions: int, seed: int):
        self.dimensions, self.seed = dimensions, seed
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # by parameter: signs int8, offsets

    def __call__(self, gradients: Iterable[tuple[str, Tensor]]) -> np.ndarray:
        """[D] float32 of the parameters' gradients by name."""
        total = torch.zeros(self.dimensions, dtype=torch.float64)
        for name, gradient in gradients:
            signs, offsets = self._random(name, gradient.numel())
            signed = gradient.detach().cpu().reshape(-1) * signs
            for piece, offset in zip(signed.split(self.dimensions), offsets.tolist(), strict=True):
                before_the_end = min(self.dimensions - offset, len(piece))
                total[offset : offset + before_the_end] += piece[:before_the_end]
                total[: len(piece) - before_the_end] += piece[before_the_end:]
        return total.float().numpy()

    def _random(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """A sign for each number, and where each piece of D numbers begins: numbers of two pieces meet with 1/D."""
        if name not in self._known:
            digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            num_pieces = -(-size // self.dimensions)
            offsets = torch.randint(self.dimensions, (num_pieces,), generator=generator)
            signs = torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
            self._known[name] = signs, offsets
        return self._known[name]
