"""Who is asked to let a run in: only what says that it is the head of a Ray cluster, and within a limit."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpt_ray.cluster import runtime as module
from hpt_ray.cluster.runtime import IN_A_JOB, address_to_join
from hpt_ray.errors import UserError


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No job, no address, and no cluster that another one started on this machine."""
    monkeypatch.delenv(IN_A_JOB, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a socket that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_listener_is_given_up_within_the_limit(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.5)
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf"cluster\.address={silent}: no Ray cluster(.|\n)*silent for"):
        address_to_join(silent)
    assert 0.4 < time.monotonic() - begin < 10


def test_the_limit_is_what_a_person_waits_for() -> None:
    assert module.ANSWER_TIMEOUT_S <= 15


def test_a_web_server_is_not_a_cluster() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            address_to_join(f"127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "http://127.0.0.1:8265", "x", ""]
)
def test_nobody_at_the_address(address: str) -> None:
    with pytest.raises(UserError, match=f"cluster.address={address}: no Ray cluster answers there"):
        address_to_join(address)


def test_an_address_of_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS=127\.0\.0\.1:1: no Ray cluster answers there"):
        address_to_join("auto")


def test_without_a_cluster_auto_and_local_start_one() -> None:
    assert address_to_join("auto") is None
    assert address_to_join("local") is None


def test_a_cluster_that_is_gone_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert module.ray._private.utils.read_ray_address() == "127.0.0.1:1"
    assert address_to_join("auto") is None


def test_local_inside_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(UserError, match=r"cluster\.address=local: a Ray job .* at auto"):
        address_to_join("local")
