"""The life of a rollout worker, event by event."""

from __future__ import annotations

from itertools import product

import pytest

from hpt_ray.rollout.health import Event, Health, State


def after(*events: Event) -> Health:
    health = Health()
    for event in events:
        health = health.after(event)
    return health


UP = (Event.STARTED, Event.COMMITTED)


def test_a_worker_serves_only_with_the_committed_weights() -> None:
    assert not after().serves
    assert not after(Event.STARTED).serves
    assert after(*UP).serves


def test_a_restarted_worker_starts_over() -> None:
    restarted = after(*UP, Event.FAILED, Event.RESTARTED)
    assert restarted.state is State.STARTING
    assert restarted.after(Event.STARTED).state is State.STALE


def test_a_silent_worker_gets_nothing_new_until_it_makes_progress() -> None:
    suspect = after(*UP, Event.SILENT)
    assert suspect.state is State.SUSPECT
    assert not suspect.serves
    assert suspect.takes_weights
    assert suspect.after(Event.PROGRESS).serves


def test_failures_are_counted_once_each_and_forgiven_by_a_rollout() -> None:
    twice = after(*UP, Event.FAILED, Event.FAILED, Event.RESTARTED, Event.FAILED)
    assert twice.failures == 2  # one death that was heard of twice, and one more
    assert twice.delivered().failures == 0


def test_a_retired_worker_stays_so() -> None:
    retired = after(*UP, Event.FAILED, Event.GIVEN_UP)
    assert retired.after(Event.FAILED).state is State.RETIRED
    with pytest.raises(ValueError, match="retired"):
        retired.after(Event.RESTARTED)


def test_whatever_happens_only_commits_and_progress_lead_to_serving() -> None:
    reached = {Health()}
    frontier = set(reached)
    while frontier:
        found = set()
        for health, event in product(frontier, Event):
            try:
                next_health = health.after(event)
            except ValueError:
                continue
            if next_health.serves:
                assert health.serves or event is Event.COMMITTED or health.state is State.SUSPECT
            if next_health.failures < 3:
                found.add(next_health)
        frontier = found - reached
        reached |= found
    assert {health.state for health in reached} == set(State)
