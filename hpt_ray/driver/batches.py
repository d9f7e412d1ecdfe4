"""Prompts to graded groups, step after step, some of them ahead of time.

     sampler ──prompts──▶ requests, longest first ──▶ router ──rollouts──▶ verifier ──results──▶ groups

In: a phase, and the step that is about to train. Out: its batch, whose groups come as they are complete. With
`rollout.max_off_policy_steps` S, the batches of the next S steps are begun at the same time, so generation goes on
while the learner steps; their rollouts are then up to S versions behind. With S = 0 nothing is begun before
the weights it needs are committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpt_ray.algorithms.gates import GATES, Attempt, attempt_of, trains_nothing
from hpt_ray.algorithms.prefixes import PREFIX_RULES, prefix_of, search
from hpt_ray.checkpoint.state import RunState
from hpt_ray.cluster.actor_group import ActorGroup
from hpt_ray.data.sampler import Sampler
from hpt_ray.driver.setup import PreparedPhase
from hpt_ray.observe.rollout_dump import dump_of, read_groups, write_groups
from hpt_ray.reward.groups import GroupStream, graded_groups, in_order
from hpt_ray.rollout.requests import GenerateRequest, Sampling, request_for, sampling_seed, unique_ids
from hpt_ray.rollout.router import Draw, Router, longest_first
from hpt_ray.types import Group, Prompt


@dataclass(frozen=True)
class Batch:
    """The prompts of one step and the stream of their groups."""

    step: int
    prompts: list[Prompt]
    stream: GroupStream
    order: Sequence[str] | None  # ids of the requests in the order groups must come in; None: as they come
    position: dict[str, Any]  # of the sampler, once these prompts were drawn

    def groups(self) -> AsyncIterator[Group]:
        groups = aiter(self.stream)
        return groups if self.order is None else in_order(groups, self.order)


class BatchStream:
    """Begins batches of one phase's prompts, in the sampler's order."""

    def __init__(self, phase: PreparedPhase, stop_token_ids: tuple[int, ...]):
        config = self._config = phase.config
        self._prompts, self._num_rollouts = phase.prompts, phase.num_rollouts
        self._steps_before, self._last_step = phase.before, phase.last
        self._prefixes = phase.estimator.prefixes
        self._searches = phase.estimator.searches_prefixes
        self._sampling = Sampling(
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
            max_tokens=config.data.max_response_tokens,
            stop_token_ids=stop_token_ids,
        )
        # A prompt that is decided early lacks rollouts that depend on timing.
        early = config.selection.early_decision and not config.run.deterministic
        self._gate = GATES[phase.gate]
        self._gate_is_certain = self._gate.is_certain if early else None
        self._is_certain = self._asks_for_demonstration if self._gate_is_certain else None
        self._sampler = Sampler(len(self._prompts), seed=config.run.seed, shuffle=config.data.shuffle)
        self._router: Router | None = None
        self._verifier: ActorGroup | None = None
        self._ahead: deque[Batch] = deque()
        self._current: Batch | None = None  # in training
        self._mostly_solved = False  # that was so for most prompts of the last step
        self.position = self._sampler.state()  # after the prompts that have been trained on
        self.lengths: dict[str, float] = {}  # mean response tokens of a prompt at its last attempt
        self.attempts: dict[str, list[Attempt]] = {}  # what each prompt's attempts came to, the oldest first

    def connect(self, router: Router | None, verifier: ActorGroup | None) -> None:
        self._router, self._verifier = router, verifier

    def begin(self, step: int) -> Batch:
        """The batch of `step`. Batches that may run ahead are begun too."""
        last = min(step + self._config.rollout.max_off_policy_steps, self._last_step)
        while step + len(self._ahead) <= last:
            self._ahead.append(self._batch(step + len(self._ahead)))
        self._current = self._ahead.popleft()
        return self._current

    def done(self, batch: Batch, groups: Sequence[Group]) -> None:
        """The learner has trained on `batch`."""
        # Where prompts were replaced, others were drawn since it began, and none is ahead.
        self.position = batch.position if self._ahead else self._sampler.state()
        self._current = None
        self._mostly_solved = 2 * sum(group.num_correct > 0 for group in groups) > len(groups)
        for group in groups:
            if (attempt := attempt_of(group)).num_responses:
                self.attempts.setdefault(group.prompt.id, []).append(attempt)
            lengths = [len(r.token_ids) for r in group.rollouts if r.finish.is_response]
            if lengths:
                self.lengths[group.prompt.id] = float(np.mean(lengths))

    async def drain(self) -> None:
        """Wait until nothing is being generated any more."""
        for batch in self._ahead:
            await batch.stream.all()

    # -- restart -----------------------------------------------------------------------------------

    async def save(self, folder: Path) -> None:
        """Write the groups of batches that have been begun, so that a resumed run trains on the same."""
        folder.mkdir()
        for batch in self._ahead:
            write_groups(dump_of(folder, batch.step), await batch.stream.all())

    def put_back(self, batch: Batch) -> None:
        """A batch that was begun and not trained on is the next one again."""
        self._ahead.appendleft(batch)
        self._current = None

    def restart(self, state: RunState, ahead: Path) -> None:
        """Go on where a checkpoint was made, with the batches that were ahead of it. Nothing has begun yet."""
        self._sampler.load_state(state.sampler)
        self.position = dict(state.sampler)
        self.lengths = dict(state.history)
        self.attempts = {name: list(found) for name, found in state.attempts.items()}
        while True:
            number = state.step + 1 + len(self._ahead)
            if not dump_of(ahead, number).is_file():
                break
            prompts = self._draw(self._config.prompts_per_step)
            groups = read_groups(dump_of(ahead, number), {prompt.id: prompt for prompt in prompts})
            self._ahead.append(
                Batch(number, prompts, GroupStream(groups), self._order(prompts), self._sampler.state())
            )

    async def close(self) -> None:
        """Abort what is under way."""
        for batch in (*self._ahead, self._current):
            if batch is not None:
                await batch.stream.close()
        self._ahead.clear()
        self._current = None

    # ----------------------------------------------------------------------------------------------

    def _draw(self, count: int) -> list[Prompt]:
        return [self._prompts[i] for i in self._sampler.next_batch(count)]

    def _order(self, prompts: list[Prompt]) -> list[str] | None:
        if not (self._config.run.deterministic and self._num_rollouts):
            return None
        return unique_ids([prompt.id for prompt in prompts])

    def _batch(self, step: int) -> Batch:
        prompts = self._draw(self._config.prompts_per_step)
        if self._num_rollouts == 0:
            stream = GroupStream([Group(prompt, [], []) for prompt in prompts])
        else:
            stream = GroupStream(source=self._generate(prompts, step))
        return Batch(step, prompts, stream, self._order(prompts), self._sampler.state())

    def _asks_for_demonstration(self, prompt: Prompt, num_correct: int, num_graded: int) -> bool:
        """Whether the gate takes this prompt's demonstration whatever its other rollouts say."""
        assert self._gate_is_certain is not None, "this gate needs all rollouts"
        return prompt.demonstration is not None and self._gate_is_certain(
            self._config.selection.gamma,
            num_correct=num_correct,
            num_graded=num_graded,
            num_rollouts=self._num_rollouts,
        )

    def _num_held(self, prompt: Prompt) -> int:
        """Samples that need not be drawn while all others are wrong: the decision is certain without.

        None where a correct response is likely: all are needed then, and those that wait make the step longer.
        """
        attempts = self.attempts.get(prompt.id)
        is_likely = attempts[-1].num_correct > 0 if attempts else self._mostly_solved
        if self._is_certain is None or is_likely:
            return 0
        return sum(self._is_certain(prompt, 0, self._num_rollouts - k) for k in range(1, self._num_rollouts))

    def _request(
        self, key: str, prompt: Prompt, step: int, expected_tokens: float | None = None, **which: int
    ) -> GenerateRequest:
        """For n rollouts of a prompt, by default expected to be as long as at its last attempt."""
        if expected_tokens is None:
            expected_tokens = self.lengths.get(prompt.id, 1.0)
        return request_for(
            key,
            prompt.token_ids,
            num_samples=self._num_rollouts,
            run_seed=self._config.run.seed,
            step=step,
            expected_tokens=expected_tokens,
            **which,
        )

    def _requests(self, key: str, prompt: Prompt, step: int, expected_tokens: float) -> list[GenerateRequest]:
        """What is asked for at first: one request, or two where only some rollouts continue a prefix."""
        n, seed = self._num_rollouts, self._config.run.seed
        request = self._request(key, prompt, step, expected_tokens, num_held=self._num_held(prompt))
        if self._prefixes is None:
            return [request]
        steps_done = step - 1 - self._steps_before
        prefix = prefix_of(prompt, self._prefixes, steps_done, sampling_seed(seed, f"{step}/prefix", key, 0))
        if not len(prefix):
            return [request]
        if PREFIX_RULES[self._prefixes.rule].only_last:
            return [request.part(0, n - 1), request.part(n - 1, n).continuing(prefix)]
        return [request.continuing(prefix)]

    def _draw_again(self, draw: Draw, step: int, key: str, group: Group) -> int:
        """Ask for n more rollouts of a prompt, where the search for a prefix goes on; how many were asked for."""
        prompt, length = group.prompt, search(group)
        if not length:
            draw.settle(key)
            return 0
        request = self._request(key, prompt, step, first_sample=len(group.rollouts))
        assert prompt.demonstration is not None, f"{prompt.id} has no demonstration to continue"
        draw.again(request.continuing(prompt.demonstration.token_ids[:length]))
        return self._num_rollouts

    def _draw_another(
        self, draw: Draw, step: int, drawn: list[str], key: str, group: Group
    ) -> tuple[str, Prompt] | None:
        """Ask for the rollouts of the next prompt in place of one that trains nothing, while the step may draw more.

        That is DAPO's dynamic sampling (arXiv 2503.14476, Eq 11). `drawn`: the prompts of the step so far.
        """
        config = self._config
        history = self.attempts.get(group.prompt.id, [])
        decision = self._gate.function(group, config.selection.gamma, history)
        most = config.selection.max_num_gen_batches * config.prompts_per_step
        other = None
        if len(drawn) < most and trains_nothing(group, decision):
            (prompt,) = self._draw(1)
            drawn.append(prompt.id)
            other = unique_ids(drawn)[-1], prompt
            draw.another(self._request(*other, step))
        draw.settle(key)
        return other

    def _generate(self, prompts: list[Prompt], step: int) -> AsyncIterator[Group]:
        assert self._router is not None, "nobody to ask"
        assert self._verifier is not None, "nobody to grade"
        by_id = dict(zip(unique_ids([prompt.id for prompt in prompts]), prompts, strict=True))
        usual = float(np.mean([*self.lengths.values()])) if self.lengths else 1.0
        requests = [
            request
            for key, prompt in by_id.items()
            for request in self._requests(key, prompt, step, self.lengths.get(prompt.id, usual))
        ]
        replaces = self._config.selection.max_num_gen_batches > 1
        draw = self._router.generate(
            longest_first(requests), self._sampling, goes_on=self._searches or replaces
        )
        return graded_groups(
            draw,
            by_id,
            num_samples=self._num_rollouts,
            verifier=self._verifier,
            timeout_s=self._config.rollout.timeout_s,
            is_certain=self._is_certain,
            abort=draw.abort,
            release=draw.release,
            again=partial(self._draw_again, draw, step) if self._searches else None,
            instead=partial(self._draw_another, draw, step, [p.id for p in prompts]) if replaces else None,
        )
