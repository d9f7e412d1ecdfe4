"""Saving and finding a run's checkpoints: the learner's files, the batches ahead, and the run's state.

    step-000012/learner/   weights, optimizer and random states, one file a rank
               critic/     the same for the critic, and its value model; only where there is one
               hf/         the policy as a Hugging Face folder
               ahead/      groups of the steps that were generated ahead (deterministic runs only)
               state.json  RunState

The actors write their files between two steps; hashing, syncing to disk and mirroring go on in a thread
beside the next step. A save that fails is said and counted, what there is of it is removed, and the run goes on:
the next one may find more room. The last one of a run must come to something.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from hpt_ray.checkpoint.replicas import Replicas
from hpt_ray.checkpoint.state import RunState, read_state
from hpt_ray.checkpoint.store import DAMAGED, CheckpointFailed, CheckpointStore, Found
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.data.turn import name_stop_ids
from hpt_ray.driver.actors import Actors
from hpt_ray.driver.batches import BatchStream
from hpt_ray.errors import NoWorkerLeft, UserError, WaitExpired, in_one_line

LEARNER, CRITIC, EXPORT, AHEAD = "learner", "critic", "hf", "ahead"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint and the state that is in it; or the copy in memory, with what is beside it on disk."""

    path: Path
    state: RunState
    in_memory: bool = False

    @property
    def ahead(self) -> Path:
        return self.path / AHEAD

    @property
    def name(self) -> str:
        return "the copy in memory" if self.in_memory else self.path.name


class CheckpointManager:
    """The checkpoints of one run. One save is under way at a time."""

    def __init__(
        self,
        store: CheckpointStore,
        timeout_s: float,
        stop_token_ids: tuple[int, ...] = (),
        say: Callable[[str], None] = lambda text: None,
    ):
        self._stop_token_ids = stop_token_ids
        self.store, self._timeout_s, self._say = store, timeout_s, say
        self.replicas = Replicas(timeout_s=timeout_s)
        self._committing: asyncio.Task[None] | None = None
        self._faults: Counter[str] = Counter()
        self._failure: CheckpointFailed | None = None  # of the last save, if it failed
        # Step of the newest checkpoint on disk, or of one that is being committed.
        self.saved_at: int | None = None
        self.best: tuple[float, int] | None = None  # score and step; always of a checkpoint that is whole

    async def write(self, actors: Actors, step: int, ahead: BatchStream | None) -> None:
        """Write the actors' files of a checkpoint, and the batches ahead where they are given."""
        await self.settle()
        self._failure = None
        try:
            folder = self.store.begin(step)
            await self._write_ranks(actors, folder.resolve())
            if ahead is not None:
                await ahead.save(folder / AHEAD)
        except (RayError, WaitExpired, NoWorkerLeft):  # somebody is lost, which is not the disk's fault
            raise
        except Exception as error:
            self._fail(self.store.failed(step, error))

    def commit(self, state: RunState) -> None:
        """Let what was written become a whole checkpoint, in the background; see `settle`.

        `state.best` becomes `best` once it is whole, and its checkpoint stays whatever is kept.
        """
        if self._failure is None:
            self.saved_at = state.step
            self._committing = asyncio.create_task(self._commit(state.to_json(), state.step, state.best))

    async def _commit(self, state: dict[str, Any], step: int, best: tuple[float, int] | None) -> None:
        try:
            committed = await asyncio.to_thread(
                self.store.commit, step, state, keep_also=None if best is None else best[1]
            )
        except CheckpointFailed as error:
            return self._fail(error)
        self.best = best
        if committed.mirror_problem is not None:
            self._faults["checkpoint_mirror"] += 1
            self._say(f"The mirror failed, and the run goes on: {committed.mirror_problem}")
        if committed.old_problem is not None:
            self._say(f"{committed.path.name} is whole, but {committed.old_problem}")

    def _fail(self, error: CheckpointFailed) -> None:
        self._failure, self.saved_at = error, None
        self._faults["checkpoint_failed"] += 1
        self._say(f"The run goes on, but {error}")

    async def copy(self, actors: Actors, state: RunState, ahead: BatchStream | None) -> None:
        """Let the ranks copy what they have into memory, in the background; see `checkpoint.replicas`."""
        await self.replicas.settle()
        try:
            folder = tempfile.TemporaryDirectory(prefix="hpt_ray-")
            if ahead is not None:
                await ahead.save(Path(folder.name) / AHEAD)
        except OSError as error:  # of the disk that has temporary files
            self.replicas.problems.append(in_one_line(error))
        else:
            self.replicas.begin(actors.ranks, state, folder)

    async def saved(self) -> None:
        """Wait until the last save is whole. Raises `CheckpointFailed` where it failed."""
        await self.settle()
        if self._failure is not None:
            raise self._failure

    async def settle(self) -> None:
        """Wait until the last save is whole, or has failed."""
        if self._committing is not None:
            committing, self._committing = self._committing, None
            await committing

    @property
    def newest_step(self) -> int:
        """What the ranks would start again from, if it is whole; 0: the beginning."""
        return max([self.replicas.step, *self.store.steps()])

    @property
    def faults(self) -> Counter[str]:
        """What went wrong with checkpoints, and was mended, so far."""
        return self._faults + Counter(checkpoint_in_memory=len(self.replicas.problems))

    async def newest(self, last_step: int) -> Saved | None:
        """The newest whole checkpoint on disk or mirror, or copy in memory; damaged ones are said and set aside.

        Raises `UserError` where it is past `last_step` of the run, or where there are checkpoints and none can be
        used: to start at the beginning would write over what the run has.
        """
        await self.settle()
        copy = await self.replicas.newest()
        if copy is not None and all(step <= copy[0].step for step in self.store.steps()):
            return Saved(copy[1], copy[0], in_memory=True)
        self.store.put_back()
        found = self.store.latest(checksums=True, check=read_state)
        if found.path is None:
            if found.rejected:
                raise _none_usable(self.store.root, found)
            return None
        for path, why in found.rejected.items():
            self._faults["checkpoint_damaged"] += 1
            self._say(
                f"Checkpoint {path.name} is damaged ({why}). It is set aside as {DAMAGED}{path.name}, and "
                f"{found.path.name} is used."
            )
        self.store.set_aside(found.rejected)
        state = read_state(found.path)
        if state.step > last_step:
            raise UserError(
                f"{found.path} is at step {state.step}, past run.steps={last_step}: raise run.steps."
            )
        return Saved(found.path, state)

    async def load(self, actors: Actors, saved: Saved) -> None:
        """The checkpoint's weights and optimizer into the ranks."""
        if saved.in_memory:
            self.saved_at = None
            return await self.replicas.restore(actors.ranks)
        self.saved_at, self.best = saved.state.step, saved.state.best
        folder = saved.path.resolve()
        await actors.learners.call("load", str(folder / LEARNER), timeout_s=self._timeout_s)
        if actors.critic is None:
            return
        if not (folder / CRITIC).is_dir():
            raise UserError(
                f"{saved.path} was written without a critic, which this algorithm needs: start a new run from "
                f"its {saved.path / EXPORT} (model.path), or continue with the algorithm it was made with."
            )
        await actors.critic.call("load", str(folder / CRITIC / "state"), timeout_s=self._timeout_s)

    async def _write_ranks(self, actors: Actors, folder: Path) -> None:
        (folder / LEARNER).mkdir()
        await self._write_each(actors.learners, "save", folder / LEARNER)
        await self._write_each(actors.learners, "export", folder / EXPORT)
        name_stop_ids(folder / EXPORT, self._stop_token_ids)
        if actors.critic is not None:
            (folder / CRITIC / "state").mkdir(parents=True)
            await self._write_each(actors.critic, "save", folder / CRITIC / "state")
            await self._write_each(actors.critic, "export", folder / CRITIC)

    async def _write_each(self, ranks: ActorGroup, method: str, folder: Path) -> None:
        """All ranks are through when it is clear that one could not write. Raises `OSError`."""
        unwritten = await ranks.call(method, str(folder), timeout_s=self._timeout_s)
        if problems := [
            f"{name}: {why}" for name, each in zip(ranks.names, unwritten, strict=True) for why in each
        ]:
            raise OSError("; ".join(problems))


def _none_usable(root: Path, found: Found) -> UserError:
    each = "; ".join(found.rejected.values())
    return UserError(
        f"{root} has checkpoints, but none of them can be used: {each}. Nothing was changed there. Put a whole copy "
        "back in its place, name a checkpoint.mirror that has one, or start a run of its own with resume=never."
    )
