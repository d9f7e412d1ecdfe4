"""Why rows and demonstrations were dropped, in words, and what brings them back.

In: the counts of an `intake.Tally` by reason. Out: sentences for a refusal or a warning.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpt_ray.data.intake import Tally

_SENTENCES = {
    "no_ground_truth": "Rows without a ground truth: {n}. Name its column with data.columns={{answer: COLUMN}}.",
    "empty_prompt": "Rows without text in their prompt: {n}.",
    "duplicate": "Rows with the id and the prompt of another row: {n}.",
    "prompt_too_long": (
        "Prompts dropped for length at data.max_prompt_tokens={max_prompt}: {n}. Raise it to "
        "{longest_prompt}, the longest has {longest_prompt} tokens."
    ),
    "demonstration_too_long": (
        "Demonstrations dropped for length at data.max_response_tokens={max_response}: {n}. Raise it to "
        "{longest_demonstration}, the longest has {longest_demonstration} tokens."
    ),
    "demonstration_past_end": (
        "Demonstrations that go on after a token that ends a response: {n}. Take away what follows it, or name "
        "another token in data.end_token."
    ),
    "demonstration_thinks_on": (
        "Demonstrations without `</think>`, where the prompt already ends with `<think>`: {n}. They would teach to "
        "think on for ever. Write `</think>` between reasoning and answer; or, where the template can, open none: "
        "data.chat_template_kwargs={{enable_thinking: false}}."
    ),
    "no_demonstration": (
        "Rows without a demonstration: {n}. If a column holds it, name it: data.columns={{target: COLUMN}}. {read_as}."
    ),
}


def in_words(
    counts: Mapping[str, int], tally: Tally, max_prompt_tokens: int, max_response_tokens: int
) -> str:
    """A sentence for each reason that has a count.

    Example: `Demonstrations dropped for length at data.max_response_tokens=256: 24. Raise it to 261, the longest has …`
    """
    known = {
        "max_prompt": max_prompt_tokens,
        "max_response": max_response_tokens,
        "longest_prompt": tally.longest_prompt,
        "longest_demonstration": tally.longest_demonstration,
        "read_as": "; ".join(readings(tally)) or "as verl writes it",
    }
    return " ".join(_SENTENCES[reason].format(n=n, **known) for reason, n in counts.items() if n)


def readings(tally: Tally) -> list[str]:
    """One line for every way in which a file was read."""
    return [
        f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: read as {reading}"
        for reading, files in tally.read_as.items()
    ]
