"""The faults of `chaos.py`: one table, each a function that does it and hands back what undoes it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from nodes import Nodes, lose, wait_for  # of tests/cluster

from hpt_ray.observe.run_folder import RunFolder

DAY_S = 86_400
LIMIT_S = 300.0
SHM = Path("/dev/shm")
ENGINE, LEARNER, REFERENCE = "ray::RolloutWorker", "ray::LearnerWorker", "ray::ReferenceWorker"
VERIFIER, REWARD = "ray::Verifier", "hpt_ray.reward.pool"
Undo = Callable[[], None]


@dataclass
class Target:
    """A run on two nodes, the second of which can be lost; `start` makes one more driver, printing to a file."""

    runs: Path
    nodes: Nodes
    second: psutil.Popen
    random: random.Random
    start: Callable[[], tuple[subprocess.Popen[bytes], Path]]
    look_after: Callable[[], None]  # what goes on while a fault waits for its moment
    driver: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.driver, _ = self.start()

    @property
    def folder(self) -> RunFolder:
        return RunFolder((self.runs / "latest").resolve())

    def one_of(self, *marks: str) -> psutil.Process:
        """A process whose title begins with one of the marks, or whose command line has it."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                title, *words = process.cmdline() or [""]
                if any(title.startswith(mark) or any(mark in word for word in words) for mark in marks):
                    found.append(process)
        if not found:  # it is being started again
            raise psutil.NoSuchProcess(0, str(marks))
        return self.random.choice(found)

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()


def killed(mark: str) -> Callable[[Target], None]:
    """kill -9; Ray, the run or the verifier starts another one."""
    return lambda target: target.one_of(mark).kill()


def driver_killed(target: Target) -> None:
    """kill -9; it is started again with `resume=auto`."""
    target.kill_driver()


def frozen(target: Target) -> Undo:
    """SIGSTOP to any actor or grading process; undone by SIGCONT, for one that was replaced meanwhile as well."""
    process = target.one_of(
        *target.random.choice([(ENGINE,), (LEARNER,), (REFERENCE,), (VERIFIER,), (REWARD,)])
    )
    process.suspend()

    def undo() -> None:
        with suppress(psutil.NoSuchProcess):
            process.resume()

    return undo


def filled(disk: Callable[[Target], Path], left: int) -> Callable[[Target], Undo]:
    """A file takes the file system but for `left` bytes; undone by removing it."""

    def fault(target: Target) -> Undo:
        filler = disk(target) / "filler"
        with filler.open("wb") as file:
            space = os.statvfs(filler)
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - left))
        return lambda: filler.unlink(missing_ok=True)

    return fault


def few_file_handles(target: Target) -> Undo:
    """prlimit: any actor or the driver can open no more files than it has; undone by the old limit."""
    marks = [(ENGINE,), (LEARNER,), (VERIFIER,), ()]
    chosen = target.random.choice(marks)
    process = target.one_of(*chosen) if chosen else psutil.Process(target.driver.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), before[1]))

    def undo() -> None:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_NOFILE, before)

    return undo


def clock_back(target: Target) -> None:
    """As after a clock that went back a day: the killed run's name and all its files are from tomorrow. Stays."""
    target.kill_driver()
    folder = target.folder.root
    name, stamp, rest = re.fullmatch(r"(.*-)(\d{8}-\d{6})(.*)", folder.name).groups()  # type: ignore[union-attr]
    later = datetime.strptime(stamp, "%Y%m%d-%H%M%S") + timedelta(days=1)
    folder = folder.rename(folder.with_name(f"{name}{later:%Y%m%d-%H%M%S}{rest}"))
    RunFolder(folder).point_latest()
    tomorrow = time.time() + DAY_S
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # of an actor that ends meanwhile
            os.utime(path, (tomorrow, tomorrow))


def two_runs(target: Target) -> None:
    """A second driver of the same name waits for the first, which is then killed: the second takes over."""
    if target.driver.poll() is not None:
        raise psutil.NoSuchProcess(target.driver.pid)
    second, said = target.start()
    wait_for(lambda: second.poll() is not None or "Another process trains" in said.read_text(), LIMIT_S)
    if second.poll() is not None:  # a full disk let it not even start
        raise psutil.NoSuchProcess(second.pid)
    target.kill_driver()
    target.driver = second


def node_lost(target: Target) -> None:
    """The node of one learner rank is gone in the middle of a save; undone by another node that joins."""
    saving = target.folder.checkpoints
    deadline = time.monotonic() + LIMIT_S
    while not any(saving.glob(".partial-step-*")):
        if target.driver.poll() is not None or time.monotonic() > deadline:
            raise psutil.NoSuchProcess(0, msg="no save")
        target.look_after()
        time.sleep(0.001)
    lose(target.second)
    for _ in range(5):  # Ray gives a node 30 s to come up, which is little while all else starts again
        target.look_after()
        with suppress(AssertionError):
            target.second = target.nodes.join(2)
            return
    raise RuntimeError("no node comes up any more")


def damaged(target: Target) -> None:
    """The newest checkpoint has a byte that is another one, and a learner rank, killed, makes the run read it."""
    newest = max(target.folder.checkpoints.glob("step-*"), default=None)
    if newest is None:
        raise FileNotFoundError("no checkpoint yet")
    file = target.random.choice(
        [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    )
    content = bytearray(file.read_bytes())
    content[target.random.randrange(len(content))] ^= 1
    file.write_bytes(content)
    target.one_of(LEARNER).kill()


@dataclass(frozen=True)
class Fault:
    """How it is done (which hands back how it is undone, if it is), and for how long it lasts."""

    do: Callable[[Target], Undo | None]
    lasts_s: float = 0.0


# Those that kill the driver come last of several at once.
FAULTS = {
    "engine killed": Fault(killed(ENGINE)),
    "learner rank killed": Fault(killed(LEARNER)),
    "reference killed": Fault(killed(REFERENCE)),
    "verifier killed": Fault(killed(VERIFIER)),
    "grading process killed": Fault(killed(REWARD)),
    "frozen for 60 s": Fault(frozen, 60.0),
    "disk full but for 256 KiB": Fault(filled(lambda target: target.runs, 2**18), 20.0),
    "disk full": Fault(filled(lambda target: target.runs, 0), 20.0),
    "/dev/shm full but for 16 MiB": Fault(filled(lambda target: SHM, 2**24), 20.0),
    "few file handles": Fault(few_file_handles, 20.0),
    "node lost during a save": Fault(node_lost),
    "newest checkpoint damaged": Fault(damaged),
    "two runs of one name": Fault(two_runs),
    "clock back": Fault(clock_back),
    "driver killed": Fault(driver_killed),
}


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk, in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
