"""The data card of a run as HTML: what its files held, what was dropped, an example, what the reward functions said.

In: `RunData.data_card`, as `observe/data_card.py` describes it. Runs of older versions have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpt_ray.config import renamed
from hpt_ray.observe.data_card import Refused, RewardCheck, details_of, dropped_in_words
from hpt_ray.tools.report.html import Html, Pictures, grid, part, table_html
from hpt_ray.tools.report.load import RunData
from hpt_ray.tools.report.methods import DASH

QUANTILES = {"min": "min", "median": "median", "p90": "90 %", "p99": "99 %", "max": "max", "limit": "limit"}


def warnings_of(run: RunData) -> Html:
    """What the run's user was warned of at its start; empty where nothing was."""
    texts = dict.fromkeys(text for one in run.data_card.get("training", ()) for text in one["warnings"])
    return part("warning", list(texts)) if texts else Html("")


def data_section(run: RunData, pictures: Pictures) -> str:
    """Files, rows, lengths, an example and a refused demonstration of each phase; then the evaluation sets."""
    html = "".join(_training_set(one) for one in run.data_card.get("training", ()))
    rows = [
        [one["name"], f"{one['rows']:,}", f"{one['kept']:,}", dropped_in_words(one["dropped"])]
        for one in run.data_card.get("evaluation", ())
    ]
    header = ["set", "rows", "kept", "dropped"]
    return html + (table_html(rows, header, "Evaluation sets", align="lrrl") if rows else "")


def _training_set(one: Mapping[str, Any]) -> str:
    one = renamed.fields(one)
    check = RewardCheck(**one["reward_check"]) if one["reward_check"] else None
    demonstrations = "not used"
    if one["demonstrations"] is not None:
        dropped = dropped_in_words(one["demonstrations_dropped"])
        demonstrations = f"{one['demonstrations']:,}; dropped: {dropped}"
    facts = [
        *(["file", line] for line in one["read_as"]),
        ["rows", f"{one['rows']:,} read, {one['kept']:,} kept; dropped: {dropped_in_words(one['dropped'])}"],
        ["demonstrations", demonstrations],
        ["reward function", check.in_words if check else DASH],
    ]
    lengths = {"prompts": one["prompt_tokens"], "demonstrations": one["demonstration_tokens"]}
    rows = [[name, *(f"{found[key]:,}" for key in QUANTILES)] for name, found in lengths.items() if found]
    example = one["example"]
    texts = [("the model sees", example["prompt"]), ("and learns", example["demonstration"])]
    cards = [part("texts", f"Example: {example['id']}", [pair for pair in texts if pair[1] is not None])]
    if check and (found := one["reward_check"]["refused"]):
        refused = Refused(**found)
        cards.append(part("texts", f"Not accepted: {refused.id}", details_of(refused).items()))
    tables = table_html(facts, ["", "what was read"], one["title"], align="ll") + table_html(
        rows, ["tokens", *QUANTILES.values()], "Lengths against their limits"
    )
    return tables + grid(*cards)
