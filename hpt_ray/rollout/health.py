"""The life of a rollout worker as a table: which event takes it from which state to which. Pure, no Ray.

    STARTING ─▶ STALE ─▶ HEALTHY ◀─▶ SUSPECT
        ▲                   │           │
        └──── DEAD ◀────────┴───────────┘      DEAD ─▶ RETIRED

Only a HEALTHY worker is given requests. A worker that comes up is STALE: it may not serve before it holds the
committed version. One that a commit leaves out has failed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class State(enum.StrEnum):
    STARTING = "starting"  # its process and its engine are coming up
    STALE = "stale"  # up, without the committed weights
    HEALTHY = "healthy"  # serves
    SUSPECT = "suspect"  # makes no progress: finishes what it has, gets nothing new
    DEAD = "dead"  # failed; what it was asked for is asked of others
    RETIRED = "retired"  # failed too often: not started again


class Event(enum.StrEnum):
    STARTED = "started"
    COMMITTED = "committed"  # holds the version that is served
    SILENT = "silent"  # no progress for a while
    PROGRESS = "progress"
    FAILED = "failed"
    RESTARTED = "restarted"
    GIVEN_UP = "given_up"


_TABLE: dict[State, dict[Event, State]] = {
    State.STARTING: {Event.STARTED: State.STALE, Event.FAILED: State.DEAD},
    State.STALE: {Event.COMMITTED: State.HEALTHY, Event.FAILED: State.DEAD},
    State.HEALTHY: {
        Event.COMMITTED: State.HEALTHY,
        Event.PROGRESS: State.HEALTHY,
        Event.SILENT: State.SUSPECT,
        Event.FAILED: State.DEAD,
    },
    State.SUSPECT: {
        Event.COMMITTED: State.HEALTHY,
        Event.PROGRESS: State.HEALTHY,
        Event.SILENT: State.SUSPECT,
        Event.FAILED: State.DEAD,
    },
    State.DEAD: {
        Event.RESTARTED: State.STARTING,
        Event.GIVEN_UP: State.RETIRED,
        Event.FAILED: State.DEAD,  # the same death, heard of from somebody else
    },
    State.RETIRED: {Event.FAILED: State.RETIRED},
}


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one worker. Example: `Health().after(Event.STARTED).state is State.STALE`."""

    state: State = State.STARTING
    failures: int = 0  # in a row, without a rollout in between

    def after(self, event: Event) -> Health:
        """The health after `event`. Raises `ValueError` where it cannot happen in this state."""
        state = _TABLE[self.state].get(event)
        if state is None:
            raise ValueError(f"a worker that is {self.state} cannot have {event}")
        died = state is State.DEAD and self.state is not State.DEAD
        return replace(self, state=state, failures=self.failures + died)

    def delivered(self) -> Health:
        """It answered a request: what failed before is forgiven."""
        return replace(self, failures=0) if self.failures else self

    @property
    def serves(self) -> bool:
        return self.state is State.HEALTHY

    @property
    def takes_weights(self) -> bool:
        return self.state in (State.STALE, State.HEALTHY, State.SUSPECT)
