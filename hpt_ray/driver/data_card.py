"""The data card of a run: made from its prepared data, with the reward functions run on demonstrations.

In: `Prepared`. Out: a `DataCard`, which `observe/data_card.py` shows. Nothing here touches Ray: reward functions run in
killable processes of this machine. A set that the gate cannot train on was refused before, by `setup.prepare`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

import numpy as np

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.references import public
from hpt_ray.config.schema import Config
from hpt_ray.data.dropped import in_words
from hpt_ray.driver.setup import Prepared, PreparedPhase
from hpt_ray.errors import UserError
from hpt_ray.observe.data_card import (
    DataCard,
    EvaluationSet,
    Example,
    Lengths,
    Refused,
    Rehearsal,
    RewardCheck,
    TrainingSet,
)
from hpt_ray.reward.service import reward_function_of
from hpt_ray.reward.trial import try_rewards
from hpt_ray.types import Prompt, RewardResult

NUM_GRADED = 64
ALTERNATIVES = ("math", "gsm8k", "choice", "boxed", "exact")
NUM_TRIED = 8  # where there are no demonstrations: enough to see that a reward function works
MOST_CHARS = 600  # of a text that is shown
# Demonstrations that there were.
LOST_ON_THE_WAY = ("demonstration_too_long", "demonstration_past_end", "demonstration_thinks_on")


def make_card(config: Config, prepared: Prepared) -> DataCard:
    """A reward function that fails on the rows it is tried on is the card's `refusal`."""
    reports = prepared.eval_reports.items()
    return DataCard(
        tuple(_training_set(config, prepared, phase) for phase in prepared.phases),
        tuple(
            EvaluationSet(name, int(report["rows"]), int(report["kept"]), _dropped(report))
            for name, report in reports
        ),
    )


def _training_set(config: Config, prepared: Prepared, phase: PreparedPhase) -> TrainingSet:
    prompts, tally, data = phase.prompts, phase.prompts.tally, phase.config.data
    uses_demonstrations = GATES[phase.gate].needs_demonstrations
    lost = {
        reason: tally.dropped.get(reason, 0) + tally.demonstrations_left_out.get(reason, 0)
        for reason in LOST_ON_THE_WAY
    }
    sample = prompts.sample(NUM_GRADED if tally.demonstrations else NUM_TRIED)
    reward_check, refusal = None, None
    try:
        reward_check = _grade(config, phase, sample)
    except UserError as error:
        refusal = str(error)
    prompt_tokens, demonstration_tokens = prompts.lengths()
    example = next((prompt for prompt in sample if prompt.demonstration), sample[0])
    return TrainingSet(
        title="Training data" + (f" of phase {phase.number}" if len(prepared.phases) > 1 else ""),
        read_as=tuple(prompts.read_as),
        rows=tally.rows,
        kept=tally.kept,
        dropped=tally.dropped,
        demonstrations=tally.demonstrations if uses_demonstrations else None,
        demonstrations_dropped={reason: count for reason, count in lost.items() if count},
        prompt_tokens=lengths_of(prompt_tokens, data.max_prompt_tokens),
        demonstration_tokens=lengths_of(demonstration_tokens, data.max_response_tokens)
        if len(demonstration_tokens)
        else None,
        example=_example(prepared, example),
        reward_check=reward_check,
        warnings=tuple(_warnings(phase, lost, reward_check)),
        refusal=refusal,
        rehearsal=_rehearsal(phase),
    )


def _rehearsal(phase: PreparedPhase) -> Rehearsal | None:
    if phase.rehearsal is None:
        return None
    tally = phase.rehearsal.tally
    return Rehearsal(tally.rows, tally.kept, tally.dropped, phase.config.data.rehearsal_per_step)


def lengths_of(tokens: np.ndarray, limit: int) -> Lengths:
    """`tokens` [N], at least one."""
    return Lengths(
        limit, *np.quantile(tokens, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf").astype(int).tolist()
    )


def _dropped(report: Mapping[str, int | float]) -> dict[str, int]:
    prefix = "dropped/"
    return {name.removeprefix(prefix): int(n) for name, n in report.items() if name.startswith(prefix)}


def _example(prepared: Prepared, prompt: Prompt) -> Example:
    decode, shown = prepared.template.decode, prompt.demonstration
    return Example(
        prompt.id,
        shorten_middle(decode(prompt.token_ids)),
        None if shown is None else shorten_middle(decode(shown.token_ids)),
    )


def _grade(config: Config, phase: PreparedPhase, sample: list[Prompt]) -> RewardCheck | None:
    """None where no response is graded in training and the rows have nothing to compare with."""
    if not phase.num_rollouts:
        sample = [prompt for prompt in sample if prompt.ground_truth not in (None, "", [])]
    if not sample:
        return None
    graded = try_rewards(config.reward, sample, max_response_tokens=config.data.max_response_tokens)
    refused = next(((prompt, result) for prompt, result in graded if not result.correct), None)
    functions = dict.fromkeys(reward_function_of(config.reward, prompt.data_source) for prompt in sample)
    accepted = sum(result.correct for _, result in graded)
    return RewardCheck(
        tuple(map(public, functions)),
        len(graded),
        accepted,
        None if refused is None else _refused(*refused),
        _better(config, functions, [prompt for prompt, _ in graded], accepted)
        if accepted * 2 < len(graded)
        else None,
    )


def _better(config: Config, tried: Container[str], prompts: list[Prompt], accepted: int) -> str | None:
    """The reward function among `ALTERNATIVES` that accepts most of these demonstrations, where one accepts more."""
    best = None
    for name in ALTERNATIVES:
        if name in tried:
            continue
        reward = replace(config.reward, function=name, functions={})
        try:
            graded = try_rewards(reward, prompts, max_response_tokens=config.data.max_response_tokens)
        except UserError:  # it cannot use these ground truths
            continue
        if (count := sum(result.correct for _, result in graded)) > accepted:
            best, accepted = f"reward.function={name} accepts {count} of {len(graded)}", count
    return best


def _refused(prompt: Prompt, result: RewardResult) -> Refused:
    assert prompt.demonstration is not None, f"{prompt.id} has no demonstration to refuse"
    outcome = result.outcome.value.replace("_", " ")
    return Refused(
        id=prompt.id,
        prompt=shorten_middle(prompt.text),
        demonstration=shorten_middle(prompt.demonstration.text),
        reference=shorten_middle(str(prompt.ground_truth)),
        extracted=None if result.extracted is None else shorten_middle(result.extracted),
        result=f"{outcome}: {result.detail}" if result.detail else outcome,
    )


def _warnings(phase: PreparedPhase, lost: dict[str, int], check: RewardCheck | None) -> Iterator[str]:
    """Fewer than half of the rows, of the demonstrations, or of those the reward function saw are of use."""
    tally, data = phase.prompts.tally, phase.config.data
    limits = data.max_prompt_tokens, data.max_response_tokens
    had = tally.demonstrations + sum(lost.values())
    if tally.demonstrations * 2 < had:
        why = in_words(lost, tally, *limits)
        yield f"Only {tally.demonstrations:,} of {had:,} demonstrations are left. {why}"
    others = {reason: n for reason, n in tally.dropped.items() if reason not in LOST_ON_THE_WAY}
    if sum(others.values()) * 2 > tally.rows:
        yield f"Only {tally.kept:,} of {tally.rows:,} rows are kept. {in_words(others, tally, *limits)}"
    if phase.rehearsal and (rehearsed := phase.rehearsal.tally).kept * 2 < rehearsed.rows:
        why = in_words(rehearsed.dropped, rehearsed, *limits)
        yield f"Only {rehearsed.kept:,} of {rehearsed.rows:,} rows of data.rehearsal are kept. {why}"
    if check is not None and check.num_accepted * 2 < check.num_graded and (one := check.refused):
        read = "nothing was read from it" if one.extracted is None else f"“{one.extracted}” was read from it"
        end = one.demonstration[-MOST_CHARS // 5 :]
        yield (
            f"The reward function {check.in_words}"
            f"{f', and {check.better}' if check.better else ''}. So either these "
            "demonstrations are wrong, or reward.function is not the "
            "one for this data, or the ground truth is in another column. One that it refuses, "
            f"{one.id}: its reference is “{one.reference}”, {read}, the result is {one.result}. It ends: “{end}”"
        )


def shorten_middle(text: str) -> str:
    """Beginning and end of a long text, as they are: the end token matters, and so do blanks."""
    cut = len(text) - MOST_CHARS
    if cut <= 0:
        return text
    half = MOST_CHARS // 2
    return f"{text[:half]}[… {cut:,} characters …]{text[-half:]}"
