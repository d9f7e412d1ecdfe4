"""Damaged checkpoints are set aside, never counted, and never the reason why something whole is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from hpt_ray.checkpoint.manifest import CheckpointDamaged, read_manifest, write_manifest
from hpt_ray.checkpoint.mirror import Mirror
from hpt_ray.checkpoint.state import RunState
from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.driver.checkpoint_manager import CheckpointManager, Saved
from hpt_ray.errors import UserError
from hpt_ray.observe.run_folder import RunFolder


def save(store: CheckpointStore, step: int) -> Path:
    (store.begin(step) / "weights.bin").write_bytes(bytes(1000))
    return store.commit(step, RunState(step=step, version=step, sampler={}).to_json()).path


def flip(path: Path) -> None:
    content = bytearray((path / "weights.bin").read_bytes())
    content[500] ^= 1
    (path / "weights.bin").write_bytes(content)


def newest(store: CheckpointStore, said: list[str] | None = None) -> Saved | None:
    manager = CheckpointManager(store, timeout_s=1.0, say=[].append if said is None else said.append)
    return asyncio.run(manager.newest(last_step=100))


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_are_set_aside_and_new_saves_stay(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep=keep)
    everything = CheckpointStore(tmp_path, keep=0)
    save(everything, 80)
    for step in (85, 90):
        flip(save(everything, step))
    said: list[str] = []
    saved = newest(store, said)
    assert saved is not None
    assert (saved.path.name, saved.state.step) == ("step-000080", 80)
    assert [text.split(" is ")[0] for text in said] == ["Checkpoint step-000090", "Checkpoint step-000085"]
    assert names(store) == ["damaged-step-000085", "damaged-step-000090", "step-000080"]
    for step in (81, 82, 83):
        save(store, step)
    assert store.steps() == [81, 82, 83][-keep:]
    flip(save(everything, 85))
    newest(store)
    assert "damaged-step-000085-2" in names(store)


def test_what_is_half_there_does_not_count_as_kept(tmp_path: Path) -> None:
    everything, store = CheckpointStore(tmp_path, keep=0), CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 9):
        save(everything, step)
    (tmp_path / "step-000003" / "weights.bin").unlink()
    (tmp_path / "step-000009" / "MANIFEST.json").unlink()
    save(store, 4)
    assert names(store) == ["damaged-step-000003", "damaged-step-000009", "step-000002", "step-000004"]


def test_a_new_save_stays_beside_later_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store = CheckpointStore(run / "checkpoints", keep=1, mirror=Mirror(f"{tmp_path}/copies", run))
    for step in (80, 85, 81, 82):
        save(store, step)
        assert step in store.steps()
        assert store.mirror is not None
        assert store.mirror.steps() == store.steps()
    assert store.steps() == [82, 85]
    save(store, 86)
    assert store.steps() == [86]


@pytest.mark.parametrize("how", ["bytes", "state", "deep state", "not a state"])
def test_a_run_with_none_that_can_be_used_stops_and_keeps_all_it_has(tmp_path: Path, how: str) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    for step in (1, 2):
        path = save(store, step)
        match how:
            case "bytes":
                flip(path)
            case "state":
                (path / "state.json").unlink()
            case "deep state":
                (path / "state.json").write_text("[" * 200_000)
            case "not a state":
                (path / "state.json").write_text('{"step": "two", "version": 1, "sampler": {}}')
        if "state" in how:
            (path / "MANIFEST.json").unlink()
            write_manifest(path, step)
    with pytest.raises(UserError) as stopped:
        newest(store)
    for words in ("step-000001", "step-000002", "none of them can be used", "resume=never"):
        assert words in str(stopped.value)
    assert names(store) == ["step-000001", "step-000002"]
    assert newest(CheckpointStore(tmp_path / "none", keep=0)) is None


def test_one_whose_state_cannot_be_used_gives_way_to_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    save(store, 1)
    store.begin(2)
    store.commit(2, {"step": 2})
    saved = newest(store)
    assert saved is not None
    assert saved.path.name == "step-000001"
    assert names(store) == ["damaged-step-000002", "step-000001"]


MANIFESTS = {
    '{"step": 1, "files": {}}': "names no files",
    "[" * 200_000: "cannot be read",
    '{"files": {"a": {"bytes": ' + "9" * 5000 + ', "sha256": "x"}}}': "cannot be read",
    '{"files": {"a": {"bytes": null, "sha256": "x"}}}': "cannot be read",
    '{"files": {"../../x": {"bytes": 1, "sha256": "x"}}}': "not inside the checkpoint",
    '{"files": {"/x": {"bytes": 1, "sha256": "x"}}}': "not inside the checkpoint",
    '{"files": {"a\\u0000": {"bytes": 1, "sha256": "x"}}}': "not inside the checkpoint",
}


@pytest.mark.parametrize("text", MANIFESTS, ids=lambda text: text[:40])
def test_a_manifest_that_says_nothing_or_too_much_is_damage(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    good, bad = save(store, 1), save(store, 2)
    (bad / "MANIFEST.json").write_text(text)
    with pytest.raises(CheckpointDamaged, match=MANIFESTS[text]):
        read_manifest(bad)
    assert store.latest().path == good


def test_a_mirror_writes_nothing_outside_of_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "demo-20260101-000000")
    store = CheckpointStore(run.checkpoints, keep=0, mirror=Mirror(f"{tmp_path}/copies", run.root))
    path = save(store, 1)
    copy = tmp_path / "copies" / run.root.name / path.name
    planted = {"bytes": 1, "sha256": "x"}
    (copy / "MANIFEST.json").write_text(json.dumps({"files": {"../../../planted": planted}}))
    (tmp_path / "copies" / "planted").write_text("x")
    for file in sorted(path.iterdir()):
        file.unlink()
    path.rmdir()
    found = store.latest()
    assert found.path is None
    assert "not inside the checkpoint" in found.rejected[path]
    assert [file.name for file in tmp_path.rglob("planted")] == ["planted"]
    with pytest.raises(UserError, match="none of them can be used"):
        newest(store)


@pytest.mark.parametrize("name", ["step-3", "step-000003", "step-٣", "step-" + "9" * 200])
def test_a_file_in_the_place_of_a_checkpoint_is_passed_over(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    (tmp_path / name).write_text("x")
    assert newest(store) is None
    for step in (1, 2, 3):
        save(store, step)
    assert store.steps() == [3]


def test_a_checkpoint_that_was_being_replaced_is_there_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1).rename(tmp_path / ".partial-replaced-step-000001")
    saved = newest(store)
    assert saved is not None
    assert names(store) == ["step-000001"]
