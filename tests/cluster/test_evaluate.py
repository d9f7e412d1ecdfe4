"""`python -m hpt_ray.cli.evaluate` as a person runs it: stopped, killed, resumed with other workers."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import LIMIT_S, ROOT, child_environment, write_reward_function

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

SAMPLES, NUM_ANSWERS = 6, 2 * 48 * 6


def words(out: Path, reward_function: str, workers: int) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "hpt_ray.cli.evaluate",
            "model=mini:t-fresh",
            "benchmarks=[mini-geo, mini-boxes]",
        ),
        *(f"samples={SAMPLES}", "temperature=1.0", f"out={out}", f"reward.function={reward_function}"),
        *(f"rollout.num_workers={workers}", "rollout.num_cpus=0.5", "rollout.kv_cache_gib=0.05"),
        *("rollout.max_num_seqs=16", "cluster.address=local"),
    ]


def finish(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines(folder: Path) -> list[bytes]:
    file = folder / "samples.jsonl"
    return file.read_bytes().splitlines() if file.is_file() else []


def start_and_end(command: Sequence[str], folder: Path, answers: int, by: signal.Signals) -> tuple[int, str]:
    """Exit code and stderr of an evaluation that gets the signal once there are so many answers."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_S
    while len(lines(folder)) < answers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(by)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_killed_and_resumed_it_gives_the_same_files(tmp_path):
    reward_function = write_reward_function(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    shown = finish(words(whole, reward_function, workers=2))
    assert "mini-geo" in shown
    assert f"@{SAMPLES}" in shown

    ended, said = start_and_end(words(cut, reward_function, workers=1), cut, NUM_ANSWERS // 8, signal.SIGTERM)
    assert ended == 143
    (line,) = said.splitlines()
    assert f" of {NUM_ANSWERS} responses are kept. To go on: " in line
    assert line.endswith(shlex.join(words(cut, reward_function, workers=1)))
    ended, _ = start_and_end(words(cut, reward_function, workers=1), cut, NUM_ANSWERS // 4, signal.SIGKILL)
    assert ended == -signal.SIGKILL
    before = lines(cut)
    assert NUM_ANSWERS // 4 <= len(before) < NUM_ANSWERS
    assert not (cut / "prompts.parquet").exists()

    finish(words(cut, reward_function, workers=2))
    after = lines(cut)
    assert len(after) == NUM_ANSWERS
    assert after[: len(before) - 1] == before[:-1]  # what was there was not answered again
    for name in ("prompts.parquet", "results.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name

    rows = pq.read_table(cut / "prompts.parquet").to_pylist()
    assert len(rows) == 96
    assert {row["n"] for row in rows} == {SAMPLES}
    assert 0 < sum(row["correct"] for row in rows) < NUM_ANSWERS
    results = json.loads((cut / "results.json").read_text())
    assert (
        results["benchmarks"]["mini-geo"]["reward_functions"]["mini/geo"]["reward_function"]
        == reward_function
    )
    # Nothing is missing now, so nothing is started: only the report is made again.
    finish(words(cut, reward_function, workers=2))
    assert lines(cut) == after
