"""What rows are told before they are weighed: values, log-probs of the frozen or of the trained policy.

Only PPO, a KL in the reward and `learner.recompute_old_logps` need it. Rows come in question by question.
Rollouts of all questions share packs, which are scored forward only as soon as there is one for each rank. A
question goes on when its last rollout is scored and the questions before it have gone on: so the order in
which scores come back, which no two runs share, does not become an order of packs and sums. When the
rows of a round of packs have been weighed, the critic trains on that round. Generation goes on meanwhile.
Demonstrations are neither scored nor learned from.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpt_ray.cluster.actor_group import ActorGroup, wait_all
from hpt_ray.learner.packing import Packer, WeighedRow, dummy_pack
from hpt_ray.types import Pack, Row, ValueTargets

# A pack that is only scored has no policy term.
NO_TERMS = np.zeros((0, 1)), np.zeros(0)


@dataclass
class _Question:
    """The rows of one question, how many of them are not scored yet, and where they go on to."""

    rows: list[Row]
    unscored: int
    then: Callable[[list[Row]], None]


@dataclass
class _ScoredPack:
    """A pack and its rows in their order; a dummy has none."""

    pack: Pack
    rows: list[Row]

    def tell(self, field: str, per_token: np.ndarray) -> None:
        """Give each row its part of [R] as its `field`."""
        parts = np.split(per_token, np.cumsum(self.pack.response_lengths)[:-1])
        for row, part in zip(self.rows, parts, strict=not self.pack.is_dummy):
            setattr(row, field, part)

    def targets(self) -> ValueTargets:
        if not self.rows:
            return ValueTargets(*(np.zeros(1, np.float32) for _ in range(3)))
        return ValueTargets(
            values=np.concatenate([row.values for row in self.rows]),
            returns=np.concatenate([row.returns for row in self.rows]),
            scales=np.array([row.value_scale for row in self.rows], np.float32),
        )


class RowScoring:
    """Rows in; each question's rows on, once they carry their scores, in the order they came.

    `critic` gives `Row.values`, `reference` `Row.logp_ref`, `policy` (the learner's ranks) `Row.logp_old` in
    the place of the sampler's. Ranks run in lockstep, so there is either a critic or a policy.
    """

    def __init__(
        self,
        *,
        critic: ActorGroup | None = None,
        policy: ActorGroup | None = None,
        reference: ActorGroup | None = None,
        tokens_per_microbatch: int,
        timeout_s: float,
    ):
        assert critic is None or policy is None
        self._critic, self._policy, self._reference = critic, policy, reference
        self._timeout_s = timeout_s
        ranks = policy if critic is None else critic
        self._packer = Packer(
            num_ranks=1 if ranks is None else len(ranks),
            tokens_per_microbatch=tokens_per_microbatch,
            dummy=dummy_pack(0),
        )
        self._turn = itertools.count()  # whose turn it is among the reference workers
        self._rows: list[tuple[Row, _Question]] = []
        self._questions: deque[_Question] = deque()  # those that have not gone on
        self._scoring: list[asyncio.Task[None]] = []
        self._untrained: deque[list[_ScoredPack]] = deque()

    def add(self, rows: list[Row], then: Callable[[list[Row]], None]) -> None:
        """Take in the rows of one question, which go on to `then`. Sends what fills a round of packs."""
        rollouts = [row for row in rows if not row.is_demo]
        question = _Question(rows, len(rollouts), then)
        self._questions.append(question)
        for row in rollouts:
            row.returns = None  # a row that is trained on again is weighed again
            # In these packs the group of a row is its number here, by which its scores find back to it.
            self._packer.add([WeighedRow(replace(row, group=len(self._rows)), *NO_TERMS)])
            self._rows.append((row, question))
        self._hand_on()
        for packs in self._packer.full_rounds():
            self._score(packs)

    def _hand_on(self) -> None:
        while self._questions and self._questions[0].unscored == 0:
            question = self._questions.popleft()
            question.then(question.rows)

    async def finish(self) -> None:
        """Score what is left and wait until every question has gone on.

        A critic scores at least one round of packs, dummies if need be: it steps, rows or none.
        """
        if self._critic is None and not self._rows:
            return
        for packs in self._packer.last_rounds():
            self._score(packs)
        await asyncio.gather(*self._scoring)
        self._rows, self._scoring = [], []

    def cancel(self) -> None:
        """Wait for no answer any more."""
        for task in self._scoring:
            task.cancel()

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
        arguments = [(pack,) for pack in packs]
        asked: dict[str, list[Any]] = {}  # field of a row -> the answers that hold it, pack by pack
        names: list[str] = []
        if self._critic is not None:
            asked["values"] = self._critic.send_each("values", arguments)
            names += self._critic.names
            self._untrained.append(scored)
        if self._policy is not None:
            asked["logp_old"] = self._policy.send_each("logprobs", arguments)
            names += self._policy.names
        if self._reference is not None:
            turns = [next(self._turn) % len(self._reference) for _ in packs]
            asked["logp_ref"] = [
                self._reference.actors[turn].logprobs.remote(pack)
                for turn, pack in zip(turns, packs, strict=True)
            ]
            names += [self._reference.names[turn] for turn in turns]
        self._scoring.append(asyncio.create_task(self._receive(scored, asked, names)))

    async def _receive(
        self, scored: list[_ScoredPack], asked: dict[str, list[Any]], names: list[str]
    ) -> None:
        refs = list(itertools.chain(*asked.values()))
        answers = iter(await wait_all(refs, names=names, what="score rollouts", timeout_s=self._timeout_s))
        for field, pack in itertools.product(asked, scored):
            answer = next(answers)
            pack.tell(field, answer if field == "values" else answer[0])  # log-probs come with entropies
        for pack in scored:
            for number in [] if pack.pack.is_dummy else pack.pack.group_ids:
                self._rows[number][1].unscored -= 1
        self._hand_on()


def _weighed(packs: list[_ScoredPack]) -> bool:
    return all(row.returns is not None for pack in packs for row in pack.rows)
