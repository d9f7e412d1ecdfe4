"""What rows are told before they are weighed: the critic's values, the frozen policy's log-probs.

Only PPO and a KL in the reward need it. Rows come in question by question. Rollouts of all questions
share packs, which are scored forward only as soon as there is one for each critic rank; a question goes on
when its last rollout is scored. When the rows of a round of packs have been weighed, the critic trains on
that round. Generation goes on meanwhile. Demonstrations are neither scored nor learned from.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpt_ray.batch.pack import Packer, WeighedRow, dummy_pack
from hpt_ray.cluster.groups import ActorGroup, wait_all
from hpt_ray.records import Pack, Row, ValueTargets

# A pack that is only scored has no policy term.
NO_TERMS = np.zeros((0, 1)), np.zeros(0)


@dataclass
class _Question:
    """The rows of one question and how many of them are not scored yet."""

    rows: list[Row]
    unscored: int


@dataclass
class _ScoredPack:
    """A pack and its rows in their order; a dummy has none."""

    pack: Pack
    rows: list[Row]

    def targets(self) -> ValueTargets:
        if not self.rows:
            return ValueTargets(*(np.zeros(1, np.float32) for _ in range(3)))
        return ValueTargets(
            values=np.concatenate([row.values for row in self.rows]),
            returns=np.concatenate([row.returns for row in self.rows]),
            scales=np.array([row.value_scale for row in self.rows], np.float32),
        )


class RowScoring:
    """Rows of the update in; each question's rows to `then` once they carry their scores."""

    def __init__(
        self,
        *,
        critic: ActorGroup | None,
        reference: ActorGroup | None,
        tokens_per_microbatch: int,
        timeout_s: float,
        then: Callable[[list[Row]], None],
    ):
        self._critic, self._reference = critic, reference
        self._timeout_s, self._then = timeout_s, then
        self._packer = Packer(
            num_ranks=1 if critic is None else len(critic),
            tokens_per_microbatch=tokens_per_microbatch,
            dummy=dummy_pack(0),
        )
        self._turn = itertools.count()  # whose turn it is among the reference workers
        self._rows: list[tuple[Row, _Question]] = []
        self._scoring: list[asyncio.Task[None]] = []
        self._untrained: deque[list[_ScoredPack]] = deque()

    def add(self, rows: list[Row]) -> None:
        """Take in the rows of one question. Sends what fills a round of packs."""
        rollouts = [row for row in rows if not row.is_demo]
        question = _Question(rows, len(rollouts))
        if not rollouts:
            self._then(rows)
        for row in rollouts:
            row.returns = None  # a row that is trained on again is weighed again
            # In these packs the group of a row is its number here, by which its scores find back to it.
            self._packer.add([WeighedRow(replace(row, group=len(self._rows)), *NO_TERMS)])
            self._rows.append((row, question))
        for packs in self._packer.full_rounds():
            self._score(packs)

    async def finish(self) -> None:
        """Score what is left and wait until every question of the update has gone on."""
        for packs in self._packer.last_rounds():
            self._score(packs)
        await asyncio.gather(*self._scoring)
        self._rows, self._scoring = [], []

    def train(self) -> list[Any]:
        """Start the critic's backward passes of all rounds whose rows have been weighed; the references.

        Rounds go out in the order they were scored in, the same on all ranks.
        """
        pending: list[Any] = []
        while self._critic is not None and self._untrained and _weighed(self._untrained[0]):
            packs = self._untrained.popleft()
            pending += self._critic.send_each("accumulate", [(p.pack, p.targets()) for p in packs])
        return pending

    def _score(self, packs: list[Pack]) -> None:
        """Start scoring one round. The calls are made here, so that all ranks get them in one order."""
        scored = [
            _ScoredPack(pack, [] if pack.is_dummy else [self._rows[i][0] for i in pack.group_ids])
            for pack in packs
        ]
        values = [] if self._critic is None else self._critic.send_each("values", [(p,) for p in packs])
        names = [] if self._critic is None else list(self._critic.names)
        logps = []
        if self._reference is not None:
            for pack in packs:
                worker = next(self._turn) % len(self._reference)
                logps.append(self._reference.actors[worker].logprobs.remote(pack))
                names.append(self._reference.names[worker])
        if self._critic is not None:
            self._untrained.append(scored)
        self._scoring.append(asyncio.create_task(self._receive(scored, values, logps, names)))

    async def _receive(
        self, scored: list[_ScoredPack], values: list[Any], logps: list[Any], names: list[str]
    ) -> None:
        answers = await wait_all(
            [*values, *logps], names=names, what="score rollouts", timeout_s=self._timeout_s
        )
        for i, pack in enumerate(scored):
            ends = np.cumsum(pack.pack.response_lengths)[:-1]
            if values:
                for row, part in zip(pack.rows, np.split(answers[i], ends), strict=False):
                    row.values = part
            if logps:
                for row, part in zip(pack.rows, np.split(answers[len(values) + i][0], ends), strict=False):
                    row.logp_ref = part
        for pack in scored:
            for number in [] if pack.pack.is_dummy else pack.pack.group_ids:
                question = self._rows[number][1]
                question.unscored -= 1
                if question.unscored == 0:
                    self._then(question.rows)


def _weighed(packs: list[_ScoredPack]) -> bool:
    return all(row.returns is not None for pack in packs for row in pack.rows)
