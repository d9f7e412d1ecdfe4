"""The checkpoint store: whole or not there, whatever happens in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpt_ray.checkpoint.manifest import CheckpointDamaged, verify
from hpt_ray.checkpoint.store import CheckpointFailed, CheckpointStore, load_state


def save(store: CheckpointStore, step: int, size: int = 1000) -> Path:
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(os.urandom(size))
    (folder / "rank-0.pt").write_bytes(bytes([step % 256]) * 10)
    return store.commit(step, {"step": step, "sampler": {"epoch": 1}}).path


def test_a_commit_renames_with_state_and_manifest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=0)
    assert store.latest().path is None
    path = save(store, 12, size=2**20 + 7)
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000012"]
    assert load_state(path) == {"step": 12, "sampler": {"epoch": 1}}
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["step"] == 12
    assert set(manifest["files"]) == {"model/weights.bin", "rank-0.pt", "state.json"}
    assert manifest["files"]["model/weights.bin"]["bytes"] == 2**20 + 7
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
    with pytest.raises(CheckpointFailed, match="not JSON compliant"):
        store.commit(1, {"loss": float("nan")})
    assert store.steps() == []


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1)
    folder = store.begin(1)
    (folder / "new.bin").write_bytes(b"new")
    path = store.commit(1, {"attempt": 2}).path
    assert load_state(path) == {"attempt": 2}
    assert (path / "new.bin").is_file()
    assert not (path / "rank-0.pt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_the_newest_up_to_a_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    first, second = save(store, 2), save(store, 4)
    assert [store.latest(up_to=step).path for step in (1, 2, 3, 4, 5)] == [None, first, first, second, second]


def test_a_commit_in_a_thread_is_not_disturbed_by_the_next_begin(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    folder = store.begin(1)
    with (folder / "large.bin").open("wb") as file:
        file.truncate(2**29)  # takes a while to hash
    thread = threading.Thread(target=store.commit, args=(1, {"step": 1}))
    thread.start()
    deadline = time.monotonic() + 30
    while not (folder / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(AssertionError, match="wait for the commit of step 1"):
        store.begin(2)
    assert store.latest().path is None
    thread.join(timeout=30)
    assert store.steps() == [1]
    assert list(store.begin(2).iterdir()) == []
    assert store.latest().path == tmp_path / "step-000001"


SAVE_TWICE = """
import sys
from pathlib import Path
from hpt_ray.checkpoint.store import CheckpointFailed, CheckpointStore
def save(step, size):
    folder = store.begin(step)
    (folder / "weights.bin").write_bytes(bytes(200_000))
    store.commit(step, {"text": "x" * size})
store = CheckpointStore(Path(sys.argv[1]), keep=0)
save(1, 1000)
LIMIT
try:
    save(2, 900_000)
except CheckpointFailed as error:
    print(error)
found = store.latest()
print(found.path.name, found.rejected, [path.name for path in store.root.iterdir()])
save(3, 1000)
print(store.latest().path.name)
"""


def check_two_saves(printed: str) -> None:
    failure, older, newer = printed.splitlines()
    assert failure.startswith("the checkpoint of step 2 could not be saved: ")
    assert " MiB free of " in failure or " GiB free of " in failure
    assert "The newest checkpoint is still step-000001. Make room there, or lower checkpoint.keep." in failure
    assert older == "step-000001 {} ['step-000001']"
    assert newer == "step-000003"


def test_a_file_that_may_not_grow_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    finished = subprocess.run(
        [sys.executable, "-c", SAVE_TWICE.replace("LIMIT", limit), str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "File too large" in finished.stdout
    check_two_saves(finished.stdout)


def test_a_full_disk_is_named_with_its_room_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*mount, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("this machine does not let a user mount a small disk in a namespace of his own")
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$0" -c "$2" "$1"'
    finished = subprocess.run(
        [*mount, script, sys.executable, str(tmp_path), SAVE_TWICE.replace("LIMIT", "")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "No space left on device" in finished.stdout
    assert "MiB free of 1.0 MiB" in finished.stdout
    check_two_saves(finished.stdout)


def test_who_writes_the_files_can_say_that_it_failed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    folder = store.begin(1)
    (folder / "half.bin").write_bytes(b"x")
    error = store.failed(1, RuntimeError("rank 1: No space left on device"))
    assert isinstance(error, CheckpointFailed)
    assert "step 1 could not be saved: rank 1: No space left" in str(error)
    assert "There is no other" in str(error)
    assert list(tmp_path.iterdir()) == []


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
