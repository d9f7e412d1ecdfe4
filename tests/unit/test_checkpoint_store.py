"""The checkpoint store: whole or not there, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpt_ray.checkpoint.store import BLOCK_BYTES, CheckpointDamaged, CheckpointStore, load_state, verify


def save(store: CheckpointStore, step: int, size: int = 1000) -> Path:
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(os.urandom(size))
    (folder / "rank-0.pt").write_bytes(bytes([step % 256]) * 10)
    return store.commit(step, {"step": step, "sampler": {"epoch": 1}})


def test_a_commit_renames_with_state_and_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=0)
    assert store.latest().path is None
    path = save(store, 12, size=BLOCK_BYTES + 7)
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000012"]
    assert load_state(path) == {"step": 12, "sampler": {"epoch": 1}}
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["step"] == 12
    assert set(manifest["files"]) == {"model/weights.bin", "rank-0.pt", "state.json"}
    assert manifest["files"]["model/weights.bin"]["bytes"] == BLOCK_BYTES + 7
    assert store.latest().path == path


def test_only_the_newest_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 999_999, 1_000_000):
        save(store, step)
    assert store.steps() == [999_999, 1_000_000]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    keep_all = CheckpointStore(tmp_path / "all", keep=0)
    for step in range(4):
        save(keep_all, step)
    assert keep_all.steps() == [0, 1, 2, 3]


def test_the_best_one_stays_beside_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        store.begin(step)
        store.commit(step, {"step": step}, keep_also=1)
    assert store.steps() == [1, 3]


def test_an_interrupted_save_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = save(store, 1)
    (store.begin(2) / "half.bin").write_bytes(b"x")
    assert store.latest().path == path
    folder = store.begin(3)
    assert list(folder.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".partial-step-000003", "step-000001"]


def test_a_commit_without_begin_and_a_state_that_is_no_json_are_errors(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    with pytest.raises(FileNotFoundError):
        store.commit(1, {})
    store.begin(1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(1, {"loss": float("nan")})
    assert store.steps() == []


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1)
    folder = store.begin(1)
    (folder / "new.bin").write_bytes(b"new")
    path = store.commit(1, {"attempt": 2})
    assert load_state(path) == {"attempt": 2}
    assert (path / "new.bin").is_file()
    assert not (path / "rank-0.pt").exists()


def damage(path: Path, how: str) -> None:
    weights = path / "model" / "weights.bin"
    match how:
        case "truncated":
            os.truncate(weights, 999)
        case "missing":
            weights.unlink()
        case "no manifest":
            (path / "MANIFEST.json").unlink()
        case "torn manifest":
            os.truncate(path / "MANIFEST.json", 30)
        case "foreign manifest":
            (path / "MANIFEST.json").write_text("[]")
        case "wrong bytes":
            content = bytearray(weights.read_bytes())
            content[500] ^= 1
            weights.write_bytes(content)


DAMAGES = {
    "truncated": "model/weights.bin has 999 bytes instead of 1000",
    "missing": "model/weights.bin is missing",
    "no manifest": "MANIFEST.json is missing",
    "torn manifest": "MANIFEST.json cannot be read",
    "foreign manifest": "MANIFEST.json cannot be read",
    "wrong bytes": "model/weights.bin has other contents than when it was saved",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(tmp_path: Path, how: str) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    good, bad = save(store, 1), save(store, 2)
    damage(bad, how)
    found = store.latest()
    assert found.path == good
    assert list(found.rejected) == [bad]
    assert DAMAGES[how] in found.rejected[bad]
    with pytest.raises(CheckpointDamaged, match=r"step-000002"):
        verify(bad, checksums=True)


def test_wrong_bytes_of_the_right_size_need_checksums(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    path = save(store, 1)
    damage(path, "wrong bytes")
    assert store.latest(checksums=False).path == path
    assert store.latest().path is None


def test_a_state_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, keep=0), 1)
    state = path / "state.json"
    state.write_bytes(b"x" * state.stat().st_size)
    with pytest.raises(CheckpointDamaged, match=r"state\.json cannot be read"):
        load_state(path)
    (path / "rank-0.pt").unlink()
    with pytest.raises(CheckpointDamaged, match=r"rank-0\.pt is missing"):
        load_state(path)


def test_whatever_moment_a_save_is_killed_at_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hpt_ray.checkpoint.store import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]), keep=2)\n"
        "for step in range(int(sys.argv[2]), 10**6):\n"
        "    folder = store.begin(step)\n"
        "    for name in 'abc': (folder / name).write_bytes(os.urandom(200_000))\n"
        "    store.commit(step, {'step': step})\n"
    )
    store, seen = CheckpointStore(tmp_path, keep=2), -1
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(seen + 1)])
        deadline = time.monotonic() + 30
        while (store.steps() or [-1])[-1] <= seen and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.003 * attempt)  # another moment within a save each time
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        found = store.latest()
        assert found.path is not None
        assert found.rejected == {}
        assert load_state(found.path)["step"] > seen
        seen = store.steps()[-1]
