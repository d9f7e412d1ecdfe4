"""The mirror: what is whole there, what stays, and that a run outlives it."""

import shutil
import threading
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from hpt_ray.checkpoint import mirror as mirror_module
from hpt_ray.checkpoint.mirror import Mirror, restore_newest_run
from hpt_ray.checkpoint.store import CheckpointStore, Committed, load_state
from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder


class Failing(LocalFileSystem):
    """A folder that takes `room` more bytes, then half of a file, then nothing."""

    protocol = "failing"
    cachable = False
    room = 0

    def put_file(self, path1, path2, callback=None, **kwargs):
        data = Path(path1).read_bytes()
        Path(self._strip_protocol(path2)).write_bytes(data[: Failing.room])
        Failing.room -= len(data)
        if Failing.room < 0:
            raise ConnectionError("the store went away")


class Unreachable(LocalFileSystem):
    protocol = "unreachable"

    def ls(self, path, detail=False, **kwargs):
        raise ConnectionError("no route")


class Hanging(LocalFileSystem):
    protocol = "hanging"
    release = threading.Event()

    def put_file(self, path1, path2, callback=None, **kwargs):
        self.release.wait(30)


@pytest.fixture(params=["memory", "file", "folder"])
def url(request, tmp_path: Path) -> str:
    where = {
        "memory": f"memory://{uuid4().hex}/copies",
        "file": f"file://{tmp_path}/copies",
        "folder": f"{tmp_path}/copies/",
    }
    return where[request.param]


def run_at(folder: Path, name: str = "demo-20260101-000000") -> RunFolder:
    run = RunFolder(folder / name)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run.config.write_text("run: {name: demo}\n")
    return run


def store_of(run: RunFolder, url: str, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(run.checkpoints, keep=keep, mirror=Mirror(url, run.root))


def save(store: CheckpointStore, step: int, keep_also: int | None = None) -> Committed:
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes([step]) * 5000)
    return store.commit(step, {"step": step}, keep_also=keep_also)


def test_a_run_whose_disk_is_lost_goes_on_from_the_mirror(url: str, tmp_path: Path) -> None:
    run = run_at(tmp_path / "runs")
    store = store_of(run, url)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
        assert save(store, step).mirror_problem is None
    shutil.rmtree(run.root)

    restored = restore_newest_run(url, str(tmp_path / "runs"), "demo")
    assert restored == run
    assert restored.config.read_text() == "run: {name: demo}\n"
    assert [line["step"] for line in restored.read_metrics()] == [1, 2, 3]
    found = store_of(restored, url).latest()
    assert (found.path, found.rejected, found.from_mirror) == (run.checkpoints / "step-000003", {}, True)
    assert load_state(found.path) == {"step": 3}
    assert (found.path / "model" / "weights.bin").read_bytes() == b"\3" * 5000
    again = store_of(restored, url).latest()
    assert (again.path, again.from_mirror) == (found.path, False)


def test_the_mirror_keeps_what_the_folder_keeps(url: str, tmp_path: Path) -> None:
    store = store_of(run_at(tmp_path / "runs"), url, keep=2)
    for step in (1, 2, 3, 4):
        save(store, step, keep_also=1)
        assert store.mirror is not None
        assert store.mirror.steps() == store.steps()
    assert store.steps() == [1, 3, 4]
    keep_all = store_of(run_at(tmp_path / "runs", "all-20260101-000000"), url, keep=0)
    for step in (1, 2, 3):
        save(keep_all, step)
    assert keep_all.mirror is not None
    assert keep_all.mirror.steps() == [1, 2, 3]


def test_a_whole_checkpoint_of_its_own_needs_no_mirror(tmp_path: Path) -> None:
    run = run_at(tmp_path / "runs")
    save(CheckpointStore(run.checkpoints, keep=2), 5)
    Failing.room = 0
    fsspec.register_implementation("failing", Failing, clobber=True)
    store = store_of(run, f"failing://{tmp_path}/copies")
    assert store.latest().path == run.checkpoints / "step-000005"


def test_a_damaged_copy_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    run = run_at(tmp_path / "runs")
    store = store_of(run, f"file://{tmp_path}/copies", keep=0)
    for step in (1, 2, 3, 4):
        save(store, step)
    copies = tmp_path / "copies" / run.root.name
    (copies / "step-000004" / "MANIFEST.json").unlink()
    (copies / "step-000003" / "model" / "weights.bin").write_bytes(b"\0" * 5000)
    (copies / "step-000002" / "state.json").unlink()
    shutil.rmtree(run.checkpoints)
    found = store.latest()
    assert found.path == run.checkpoints / "step-000001"
    assert {path.name: why.split(": ")[-1].split("/")[-1] for path, why in found.rejected.items()} == {
        "step-000003": "weights.bin has other contents than when it was saved",
        "step-000002": "state.json is missing",
    }
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001"]


def test_a_store_that_fails_in_the_middle_is_said_and_its_half_copy_is_never_whole(tmp_path: Path) -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    run = run_at(tmp_path / "runs")
    store = store_of(run, f"failing://{tmp_path}/copies", keep=1)
    Failing.room = 10**6
    assert save(store, 1).mirror_problem is None
    for room in (0, 3000, 5005, 5100):  # within the weights, within state.json, within the manifest
        Failing.room = room
        saved = save(store, 2)
        assert saved.path == run.checkpoints / "step-000002"
        assert saved.mirror_problem is not None
        assert "ConnectionError: the store went away" in saved.mirror_problem
        elsewhere = run_at(tmp_path / f"restored-{room}")
        assert store_of(elsewhere, f"file://{tmp_path}/copies").latest().path == (
            elsewhere.checkpoints / "step-000001"
        )
    Failing.room = 10**6
    assert save(store, 3).mirror_problem is None
    copies = tmp_path / "copies" / run.root.name
    assert sorted(path.name for path in copies.iterdir()) == ["config.yaml", "step-000003"]


def test_a_store_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    monkeypatch.setattr(mirror_module, "WAIT_S", 0.2)
    saved = save(store_of(run_at(tmp_path / "runs"), f"hanging://{tmp_path}/copies"), 1)
    Hanging.release.set()
    assert saved.mirror_problem is not None
    assert "copy step-000001' did not finish within 0 s" in saved.mirror_problem
    assert saved.path.is_dir()


def test_a_mirror_that_is_needed_and_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    store = store_of(run_at(tmp_path / "runs"), "unreachable://host/copies")
    with pytest.raises(UserError, match=r"copies/demo-\S+ cannot be read \(ConnectionError: no route"):
        store.latest()
    with pytest.raises(UserError, match=r"host/copies cannot be read \(ConnectionError: no route"):
        restore_newest_run("unreachable://host/copies", str(tmp_path / "runs"), "demo")


@pytest.mark.parametrize("url", ["nope://bucket/x", "dask://x"])
def test_a_url_of_an_unknown_kind_is_refused_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"checkpoint\.mirror={url}: .*Give a folder or a URL"):
        Mirror(url, tmp_path)


def test_the_newest_run_of_that_name_with_a_whole_copy_is_restored(tmp_path: Path) -> None:
    url = f"{tmp_path}/copies"
    assert restore_newest_run(url, str(tmp_path / "new"), "demo") is None
    for name in ("demo-20260101-000000", "demo-20260101-000000-2", "demo-big-20270101-000000"):
        save(store_of(run_at(tmp_path / "runs", name), url), 1)
    (tmp_path / "copies" / "demo-20270101-000000" / "step-000001").mkdir(parents=True)  # half a copy
    restored = restore_newest_run(url, str(tmp_path / "new"), "demo")
    assert restored == RunFolder(tmp_path / "new" / "demo-20260101-000000-2")
