"""Waits have a limit, name who is late, and hand on failures at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from hpt_ray.cluster.actor_group import wait_all
from hpt_ray.errors import WaitExpired


async def after(seconds: float, value: object) -> object:
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def wait(*awaitables, timeout_s: float) -> list:
    async def run() -> list:
        names = [f"worker-{i}" for i in range(len(awaitables))]
        return await wait_all(awaitables, names=names, what="load the model", timeout_s=timeout_s)

    return asyncio.run(run())


def test_results_come_in_order() -> None:
    assert wait(after(0.02, "a"), after(0.0, "b"), timeout_s=5) == ["a", "b"]


def test_expiry_names_who_is_late_and_for_what() -> None:
    with pytest.raises(WaitExpired, match=r"worker-1 did not finish 'load the model' within 0 s"):
        wait(after(0.0, "a"), after(30, "b"), timeout_s=0.1)


def test_a_failure_ends_the_wait_at_once() -> None:
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="broken"):
        wait(after(30, "a"), after(0.0, ValueError("broken")), timeout_s=60)
    assert time.perf_counter() - begin < 5
