"""A full disk: a save fails, whatever it was that could not write, and the run goes on and can start again."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayError
from rich.console import Console
from safetensors.torch import save_file
from test_reporter import pairs

from hpt_ray.algorithms import make_estimator
from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointFailed, CheckpointStore
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.config.schema import Config
from hpt_ray.driver.checkpoint_manager import CheckpointManager
from hpt_ray.driver.reporter import Reporter
from hpt_ray.errors import UserError, exit_code, failures_of
from hpt_ray.observe.metrics import complete_line
from hpt_ray.observe.progress import Progress
from hpt_ray.observe.run_folder import RunFolder, read_json_lines, write_json
from hpt_ray.observe.trace import Span, TraceWriter, read_trace

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
    assert exit_code(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), disk / "logs") == 1
    assert f"Make room on the disk of {disk} and start again" in capsys.readouterr().err
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
        write_json(run.summary, {"long": "x" * 100_000})
    assert not list(run.root.glob(".*partial"))
    assert run.read_metrics() == [{"step": 1, "observe/non_finite": 0}]


@contextmanager
def reporting(disk: Path, said: io.StringIO) -> Iterator[tuple[RunFolder, Reporter]]:
    """A run that begins on `disk`; what it says on the terminal is added to `said`."""
    run = RunFolder.create(disk, "demo")
    with Progress(40, console=Console(width=1000, file=said)) as progress:
        reporter = Reporter(Config(), run, progress)
        reporter.go_to(-1)
        yield run, reporter


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard prints none
def test_a_run_goes_on_while_its_lines_wait_for_room(small_disk: Disk) -> None:
    """Each line is there once in the end, whole and in order; the steps whose rollouts are missing are counted."""
    disk, said = small_disk(2), io.StringIO()
    with reporting(disk, said) as (run, reporter):
        trace = TraceWriter(run.trace)

        def write(step: int) -> bool:
            line = complete_line({"reward/mean": 0.5})
            reporter.write(step, line, pairs(), Counter(reporter.full), make_estimator("dr_grpo"))
            trace.add([Span(f"step {step}", "driver", step, step + 1)])
            return bool(run.lines.waiting)

        write(1)
        fill(disk)
        step = 2
        while not write(step):  # into what is left of the last page
            step += 1
        write(step + 1)
        assert all(
            text.endswith(b"\n") for text in (run.metrics.read_bytes(), run.prompt_history.read_bytes())
        )
        assert json.loads(run.trace.read_text())
        assert not list(run.rollouts.glob(f"*{step}.parquet"))
        small_disk(4, max_files=20_000)
        assert not write(step + 2)
        reporter.close()
    steps = list(range(1, step + 3))
    assert [line["step"] for line in run.read_metrics()] == steps
    assert [line["step"] for line in read_json_lines(run.prompt_history)] == steps
    assert [span.name for span in read_trace(run.trace)] == [f"step {step}" for step in steps]
    written = [int(path.stem.removeprefix("step-")) for path in sorted(run.rollouts.glob("*.parquet"))]
    assert written[0] == 1
    assert written[-1] == steps[-1]
    assert reporter.full["disk_full"] == sum(line.get("faults/disk_full", 0) for line in run.read_metrics())
    assert reporter.full["disk_full"] == len(steps) - len(written) >= 2
    once = ("The run goes on, but the disk of", "There is room on the disk again")
    assert [said.getvalue().count(sentence) for sentence in once] == [1, 1]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard prints none
def test_lines_that_found_no_room_to_the_end_are_said_to_be_lost(small_disk: Disk) -> None:
    disk, said = small_disk(1), io.StringIO()
    with reporting(disk, said) as (run, reporter):
        fill(disk)
        reporter.write(1, complete_line({}), pairs(), Counter(), make_estimator("dr_grpo"))
        with pytest.raises(OSError, match="No space left"):
            reporter.finish(RunState(step=1, version=1, sampler={}), {}, None, quiet=True)
        reporter.close()
    assert "Lines of the steps since 1 are lost: OSError: [Errno 28] No space left" in said.getvalue()
    assert run.read_metrics() == []


def test_what_is_wrong_but_not_for_lack_of_room_is_raised(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo")
    run.metrics.mkdir()
    with pytest.raises(IsADirectoryError):
        run.append_metrics({"step": 1})


def test_a_run_folder_without_checkpoint_keeps_its_metrics(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo")
    run.check_unused()
    run.append_metrics({"step": 1})
    with pytest.raises(UserError, match=r"erase 1 lines of metrics\..*resume=never"):
        run.check_unused()
