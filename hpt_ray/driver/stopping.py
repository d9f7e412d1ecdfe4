"""Whether a run is to stop, and what is then said about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.errors import Stopped
from hpt_ray.utils import signals

T = TypeVar("T")


class Stopping:
    """A request that comes at any moment. The loop looks for it where it can stop."""

    def __init__(self, store: CheckpointStore, last_step: int, say: Callable[[str], object]) -> None:
        self._store, self._last_step, self._say = store, last_step, say
        self._asked = asyncio.Event()

    @contextmanager
    def by_signal(self, step: Callable[[], int]) -> Iterator[None]:
        """SIGINT and SIGTERM are such a request. `step`: how many steps are done."""
        loop = asyncio.get_running_loop()
        with signals.answered_by(lambda: loop.call_soon_threadsafe(self.ask), lambda: self.at_stake(step())):
            yield

    def ask(self) -> None:
        self._asked.set()
        self._say("Stopping: what is done will be saved. A second signal gives up at once.")

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    async def until(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The work, done or failed; or under way, and the run is to stop."""
        task = asyncio.create_task(work)
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        return task

    def at_stake(self, step: int) -> str:
        """What is lost of a run that ends at once after `step` steps."""
        saved = max([0, *self._store.steps()])
        if saved >= step:
            return f"Step {step} is saved; only the step under way is lost." if step else "No step was done."
        which = f"Step {step} is" if step == saved + 1 else f"Steps {saved + 1} to {step} are"
        return f"{which} lost; {f'step {saved} is saved' if saved else 'nothing was saved before'}."

    def stopped(self, step: int, why_not: str = "") -> Stopped:
        """The end after `step` steps, which are saved, or could not be for the reason `why_not`."""
        if step == 0:
            return Stopped("Stopped before the first step was done: there is nothing to save.")
        if why_not:
            return Stopped(
                f"Stopped after step {step}, which could not be saved ({why_not}). {self.at_stake(step)}"
            )
        folder = self._store.root.parent
        return Stopped(f"Stopped after step {step} of {self._last_step}, which is saved in {folder}.")
