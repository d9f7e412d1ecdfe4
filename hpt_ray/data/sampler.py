"""The order in which prompts are drawn: seeded, and resumable from two integers.

Each epoch attempts every prompt once, in a permutation that is a function of (seed, epoch) alone.
A batch takes the next prompts of that order and goes on into the next epoch where one ends: no
prompt is left out, and a batch that spans two epochs may hold the same prompt twice.
"""

from __future__ import annotations

import numpy as np

from hpt_ray.errors import UserError


class Sampler:
    """Draws indices 0 … num_prompts−1. `state()` after any draw continues exactly there."""

    def __init__(self, num_prompts: int, *, seed: int, shuffle: bool = True) -> None:
        if num_prompts < 1:
            raise UserError("There is no prompt to draw from.")
        self.num_prompts = num_prompts
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1  # of which there is no order yet
        self._move_to(epoch=0, position=0)

    @property
    def epoch(self) -> int:
        """The epoch of the next prompt, from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """How many prompts of this epoch have been drawn."""
        return self._position

    def next_batch(self, size: int) -> list[int]:
        """The indices of the next `size` prompts."""
        batch: list[int] = []
        while len(batch) < size:
            taken = self._order[self._position : self._position + size - len(batch)]
            batch.extend(taken.tolist())
            if self._position + len(taken) == self.num_prompts:
                self._move_to(epoch=self._epoch + 1, position=0)
            else:
                self._position += len(taken)
        return batch

    def move_to(self, drawn: int) -> None:
        """Be where so many prompts have been drawn since the beginning."""
        epoch, position = divmod(drawn, self.num_prompts)
        self._move_to(epoch=epoch, position=position)

    def state(self) -> dict[str, int | bool]:
        """Where the next draw is (`epoch`, `position`) and what it depends on; plain JSON."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state(self, state: dict[str, int | bool]) -> None:
        """Continue from `state()` of an earlier sampler; UserError if its order was another one."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"The saved order of prompts has {name}={state[name]}, this run has {name}={value}: "
                    "it cannot be continued. Resume with the same data, limits and run.seed, or start anew."
                )
        self._move_to(epoch=int(state["epoch"]), position=int(state["position"]))

    def _identity(self) -> dict[str, int | bool]:
        return {"seed": self._seed, "num_prompts": self.num_prompts, "shuffle": self._shuffle}

    def _move_to(self, *, epoch: int, position: int) -> None:
        self._position = position
        if epoch == self._epoch:
            return
        self._epoch = epoch
        if self._shuffle:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.num_prompts)
        else:
            self._order = np.arange(self.num_prompts)
