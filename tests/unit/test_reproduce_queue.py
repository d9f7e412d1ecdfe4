"""Jobs as real processes: a failure is an outcome, the others go on, nothing is left behind."""

import asyncio
import json
import os
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from hpt_ray.tools.suite.jobs import Job, LocalLauncher, last_words
from hpt_ray.tools.suite.queue import Journal, Queue

SLEEP = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(50)")


def jobs_running() -> int:
    """Processes of jobs below this one, which may have a Ray cluster of other tests below it too."""
    processes = (process.info for process in psutil.process_iter(["ppid", "cmdline"]))
    return sum(info["ppid"] == os.getpid() and "timeit" in (info["cmdline"] or ()) for info in processes)


def make_queue(folder: Path, *, parallel: int = 1, timeout_s: float = 60.0, total: int = 2) -> Queue:
    journal = Journal(folder / "journal.jsonl")
    console = Console(width=100)
    return Queue(LocalLauncher(), journal, console, parallel, timeout_s, total)


def test_a_job_that_fails_is_written_down_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Job("bad", ("json.tool", str(tmp_path / "missing.json")), tmp_path / "logs" / "bad.log")
    good = Job("good", ("platform",), tmp_path / "logs" / "good.log")
    outcomes = asyncio.run(make_queue(tmp_path).run([bad, good]))
    assert outcomes["good"].error == ""
    assert "missing.json" in outcomes["bad"].error
    assert (tmp_path / "logs" / "good.log").read_text(encoding="utf-8")
    journal = Journal(tmp_path / "journal.jsonl")
    assert list(journal.last_errors()) == ["bad"]
    shown = capsys.readouterr().out
    assert "bad failed: exit code" in shown
    assert "jobs 2/2 · 1 failed" in shown


def test_a_job_past_its_limit_is_ended(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, timeout_s=0.5)
    outcomes = asyncio.run(queue.run([Job("slow", SLEEP, tmp_path / "slow.log")]))
    assert outcomes["slow"].error == "not done within 0 s"
    assert jobs_running() == 0


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    nap = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(3)")
    jobs = [Job(f"nap{i}", nap, tmp_path / f"{i}.log") for i in range(4)]
    begin = time.monotonic()
    outcomes = asyncio.run(make_queue(tmp_path, parallel=4, total=4).run(jobs))
    assert sum(outcome.seconds for outcome in outcomes.values()) > 1.5 * (time.monotonic() - begin)


def test_when_it_is_stopped_its_processes_end(tmp_path: Path) -> None:
    async def stop_soon() -> None:
        jobs = [Job(name, SLEEP, tmp_path / f"{name}.log") for name in ("a", "b")]
        task = asyncio.create_task(make_queue(tmp_path, parallel=2).run(jobs))
        while jobs_running() < 2:
            await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stop_soon())
    assert jobs_running() == 0
    assert not (tmp_path / "journal.jsonl").exists()  # it did not fail


def test_an_error_is_forgotten_when_the_job_ends_well(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    lines = [
        {"time": "", "job": "a", "seconds": 1, "error": "first"},
        {"time": "", "job": "b", "seconds": 1, "error": "stays"},
        {"time": "", "job": "a", "seconds": 1, "error": ""},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"job": "cut of'
    journal.path.write_text(text, encoding="utf-8")
    assert journal.last_errors() == {"b": "stays"}
    assert journal.num_failures() == 2


def test_a_log_is_quoted_from_where_it_says_what_went_wrong(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("step 1\nerror: first\nerror: `run.steps` is wrong\nuse 3\n\n", encoding="utf-8")
    assert last_words(log) == "error: `run.steps` is wrong / use 3"
    log.write_text("", encoding="utf-8")
    assert last_words(log) == "it said nothing"
