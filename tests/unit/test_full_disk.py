"""A full disk: a save fails, whatever it was that could not write, and the run goes on and can start again."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayError
from safetensors.torch import save_file

from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointFailed, CheckpointStore
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.driver.checkpoint_manager import CheckpointManager
from hpt_ray.errors import UserError, exit_code, failures_of
from hpt_ray.observe.run_folder import RunFolder

Disk = Callable[..., Path]
WEIGHTS = {"w": torch.zeros(400_000)}  # 1.6 MB


class Ranks(ActorGroup):
    """One rank, in this process; what it writes is real."""

    def __init__(self) -> None:
        super().__init__(["learner-0"], [None])
        self.error: Exception | None = None

    async def call(self, method: str, *args: Any, timeout_s: float, what: str | None = None) -> list[Any]:
        if self.error is not None:
            raise self.error
        folder = Path(args[0])
        folder.mkdir(exist_ok=True)
        if method == "save":
            return [failures_of(lambda: torch.save(WEIGHTS, folder / "state.pt"))]
        return [failures_of(lambda: save_file(WEIGHTS, folder / "model.safetensors"))]


def save(manager: CheckpointManager, ranks: Ranks, step: int) -> None:
    actors: Any = SimpleNamespace(learners=ranks, critic=None)

    async def write_and_settle() -> None:
        await manager.write(actors, step, None)
        manager.commit(RunState(step=step, version=step, sampler={}), keep_also=None)
        await manager.settle()

    asyncio.run(write_and_settle())


@pytest.mark.parametrize("size_mb", [6, 5, 4])
def test_a_save_that_fails_is_said_and_counted_and_the_run_goes_on(small_disk: Disk, size_mb: int) -> None:
    """Disks of three sizes: the tensors of torch, or those of safetensors, are the first that have no room."""
    root, said, ranks = small_disk(size_mb) / "checkpoints", [], Ranks()
    manager = CheckpointManager(CheckpointStore(root, keep=0), timeout_s=1.0, say=said.append)
    save(manager, ranks, 1)
    for step in (2, 3):
        save(manager, ranks, step)
        assert [path.name for path in root.iterdir()] == ["step-000001"]
        assert manager.saved_at is None
    assert manager.faults["checkpoint_failed"] == 2
    assert len(said) == 2
    assert said[1].startswith("The run goes on, but the checkpoint of step 3 could not be saved: learner-0: ")
    assert "The newest checkpoint is still step-000001" in said[1]
    with pytest.raises(CheckpointFailed, match="step 3 could not be saved"):
        asyncio.run(manager.saved())
    small_disk(20)
    save(manager, ranks, 4)
    asyncio.run(manager.saved())
    assert manager.store.steps() == [1, 4]
    assert manager.saved_at == 4


def test_a_commit_that_fails_is_a_failed_save(small_disk: Disk) -> None:
    root, said = small_disk(4) / "checkpoints", []
    manager = CheckpointManager(CheckpointStore(root, keep=0), timeout_s=1.0, say=said.append)
    state = RunState(step=1, version=1, sampler={}, failures={"x" * 2_000_000: 1})
    actors: Any = SimpleNamespace(learners=Ranks(), critic=None)

    async def write_and_settle() -> None:
        await manager.write(actors, 1, None)
        manager.commit(state, keep_also=None)
        assert manager.saved_at == 1
        await manager.settle()

    asyncio.run(write_and_settle())
    assert (manager.saved_at, manager.faults["checkpoint_failed"], len(said)) == (None, 1, 1)
    assert list(root.iterdir()) == []


def test_a_save_of_a_driver_that_may_open_no_more_files_is_a_failed_save(tmp_path: Path) -> None:
    said: list[str] = []
    manager, ranks = (
        CheckpointManager(CheckpointStore(tmp_path, keep=0), timeout_s=1.0, say=said.append),
        Ranks(),
    )

    async def write_without_handles() -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            await manager.write(actors, 1, None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    actors: Any = SimpleNamespace(learners=ranks, critic=None)
    asyncio.run(write_without_handles())
    assert manager.faults["checkpoint_failed"] == 1
    assert "Too many open files" in said[0]
    assert "Older checkpoints were not touched" in said[0]


def test_a_lost_rank_is_no_failed_save(tmp_path: Path) -> None:
    manager, ranks = CheckpointManager(CheckpointStore(tmp_path, keep=0), timeout_s=1.0), Ranks()
    ranks.error = RayError("learner-0 died")
    with pytest.raises(RayError):
        save(manager, ranks, 1)
    assert manager.faults["checkpoint_failed"] == 0


def fill(disk: Path) -> None:
    """Until there is room for no byte more, and for no file."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with suppress(OSError):
        for number in range(1000):
            (disk / f"{number}").touch()


def test_the_end_of_a_run_on_a_full_disk_is_a_sentence(small_disk: Disk, capsys) -> None:
    disk = small_disk(1, max_files=100)
    fill(disk)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(disk / "metrics.jsonl"))
    for logs in (disk, None):
        assert exit_code(error, logs) == 1
        said = capsys.readouterr().err
        assert "No space left on device" in said
        assert "Make room there and start again" in said
        assert "Traceback (most" not in said
    assert exit_code(RuntimeError("other"), disk) == 1
    said = capsys.readouterr().err
    assert "failed: RuntimeError: other" in said
    assert "driver.log: [Errno 28]" in said


def test_a_start_on_a_full_disk_is_a_users_mistake_and_keeps_what_is_there(small_disk: Disk) -> None:
    disk = small_disk(1, max_files=100)
    run = RunFolder.create(disk, "demo")
    run.config.write_text("run: {}\n")
    run.append_metrics({"step": 1})
    run.logs.rmdir()
    fill(disk)
    with pytest.raises(UserError, match="No space left on device"):
        RunFolder.open(run.root)
    with pytest.raises(UserError, match="No space left on device"):
        RunFolder.create(disk, "demo")
    with pytest.raises(OSError, match="No space left"):
        run.write_summary({"long": "x" * 100_000})
    assert not list(run.root.glob(".*partial"))
    assert run.read_metrics() == [{"step": 1, "observe/non_finite": 0}]
