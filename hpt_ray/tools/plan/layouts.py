"""The layouts that cards allow for a configuration, and the fastest that fits: `hpt_ray plan --cards 8x80`.

In: a checked `Config`, a `ModelShape`, how many cards of which kind. Out: `Layout`s, fastest first: the keys that one
is written with, its plan, its seconds by part (`tools.plan.speed`), and why it does not fit. What is valid is what
`check_config` lets through, what fits is what `check_plan` does. Estimates all, not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import floor
from operator import attrgetter
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from hpt_ray.config.checks import check_config
from hpt_ray.config.schema import Config
from hpt_ray.driver.setup import choices_of
from hpt_ray.errors import UserError
from hpt_ray.observe.tables import plain_table
from hpt_ray.tools.plan.make import SPARE, Plan, check_context, check_plan, host_gib_of, make_plan
from hpt_ray.tools.plan.shape import NAMED, ModelShape, find_shape
from hpt_ray.tools.plan.show import two_digits
from hpt_ray.tools.plan.speed import CARDS, Card, step_seconds

SPLITS = (1, 2, 4, 8)  # GPUs of one engine
MOST = 0.9  # of a GPU's memory that vLLM gets
LORA_RANK = 32  # where nothing fits that trains all weights
SHOWN_S = 0.05  # a shorter part of a step is not listed
PLACE = (
    "cluster.colocate",
    "cluster.take_turns",
    "rollout.num_workers",
    "rollout.tensor_parallel",
    "learner.lora.rank",
)
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way to use the cards. `problem` says why it does not fit, and is empty where it does."""

    keys: Keys  # those that make it, by full name
    plan: Plan
    seconds: Mapping[str, float]  # of a step, by part; `step`: all of it
    problem: str

    @property
    def words(self) -> list[str]:
        """The keys as a command takes them."""
        return [f"{name}={str(value).lower()}" for name, value in self.keys.items()]

    @property
    def order(self) -> tuple[float, bool, int]:
        """Seconds as far as an estimate is worth it; of equals the simpler one is first."""
        offload, stage = self.keys["learner.offload_optimizer"], self.keys["learner.zero_stage"]
        return float(f"{self.seconds['step']:.2g}"), offload, stage

    @property
    def gpu_hours(self) -> float:
        return self.plan.num_gpus * self.seconds["step"] / 3600

    @property
    def gib(self) -> dict[str, float]:
        """One GPU at its fullest moment, by group of actors."""
        return {
            group.kind: group.memory.gib
            for group in self.plan.groups
            if group.gpus and group.memory is not None
        }

    @property
    def missing_gib(self) -> float:
        return max(*self.gib.values(), sum(self.plan.together_gib)) - self.plan.gpu_gib


def cards_of(text: str) -> tuple[int, Card]:
    """`8x80` is eight H100. Raises `UserError`."""
    count, _, kind = text.partition("x")
    if not count.isdecimal() or not int(count) or kind not in CARDS:
        known = ", ".join(f"{kind} ({card.name})" for kind, card in CARDS.items())
        raise UserError(
            f"--cards is {text!r}: write their number and the GiB of one, as 8x80; known are {known}."
        )
    return int(count), CARDS[kind]


def layouts_of(config: Config, shape: ModelShape, count: int, card: Card) -> list[Layout]:
    """All that are valid, the fastest first. Adapters only where without them nothing fits.

    Raises `UserError` where the configuration's rules leave none.
    """
    found, refusals = _layouts(config, shape, count, card, {})
    if not found:
        raise UserError(
            next(iter(refusals), f"{count} cards are too few: critic or reference have them all.")
        )
    if all(layout.problem for layout in found) and not config.learner.lora.rank:
        found += _layouts(config, shape, count, card, {"learner.lora.rank": LORA_RANK})[0]
    return sorted(found, key=lambda layout: layout.order)


def best_of(layouts: Sequence[Layout], what: str) -> list[Layout]:
    """Those that fit. Raises `UserError` where none does, with the nearest and what it is short of."""
    if fitting := [layout for layout in layouts if not layout.problem]:
        return fitting
    near = min(layouts, key=lambda layout: layout.missing_gib)
    raise UserError(
        f"{what}: no layout fits. The nearest is short of {near.missing_gib:.1f} GiB a GPU: {' '.join(near.words)}\n"
        f"{near.problem}"
    )


def _layouts(
    config: Config, shape: ModelShape, count: int, card: Card, more: Keys
) -> tuple[list[Layout], list[str]]:
    """The valid ones, and why the others are not."""
    found, refusals = [], []
    for keys in _keys(config, shape, count):
        try:
            found.append(_layout(config, shape, card, {"cluster.gpu_memory_gib": card.gib, **keys, **more}))
        except UserError as error:
            refusals.append(str(error))
    return found, refusals


def _keys(config: Config, shape: ModelShape, count: int) -> Iterator[Keys]:
    """Engines of 1, 2, 4 or 8 GPUs, on those of the ranks (in turns or both at once) or on others; ZeRO; offload."""
    others = make_plan(config, None).groups
    samples = any(group.kind == "rollout" for group in others)
    left = count - round(sum(g.count * g.gpus for g in others if g.kind not in ("learner", "rollout")))
    heads = shape.query_width // shape.head_size
    places: list[dict[str, Any]] = [] if samples else [{"learner.num_ranks": left}]
    for split in [split for split in SPLITS if samples and not heads % split]:
        for workers in range(1, left // split + 1):
            ranks = left - workers * split
            engines = {
                "rollout.num_workers": workers,
                "rollout.num_gpus": split,
                "rollout.tensor_parallel": split,
                "rollout.gpu_memory_utilization": MOST,
            }
            place = {"cluster.colocate": not ranks, "learner.num_ranks": ranks or left, **engines}
            places += [place] if ranks else [place | {"cluster.take_turns": turns} for turns in (False, True)]
    for place, stage, offload in product(places, (1, 2, 3), (False, True)):
        yield place | {
            "learner.num_gpus": 1,
            "learner.zero_stage": stage,
            "learner.offload_optimizer": offload,
        }


def _layout(config: Config, shape: ModelShape, card: Card, keys: Keys) -> Layout:
    """Raises `UserError` where the configuration's rules refuse it."""
    changed = _with(config, keys)
    check_config(changed)
    choices = choices_of(changed)
    plan = make_plan(changed, shape)
    if changed.cluster.colocate:  # vLLM gets what the ranks leave it
        memory = {group.kind: group.memory for group in plan.groups if group.memory is not None}
        held = SPARE * card.gib + memory["learner"].gib
        if changed.cluster.in_turns:
            held = sum(term.gib for term in memory["rollout"].terms if term.name == "learner's weights")
        share = max(0.1, min(MOST, floor(100 * (1 - held / card.gib)) / 100))
        keys = {**keys, "rollout.gpu_memory_utilization": share}
        changed.rollout.gpu_memory_utilization = share
        plan = make_plan(changed, shape)
    steps = sum(phase.config.run.steps for phase, *_ in choices) or 1
    seconds: dict[str, float] = {}  # of the mean step of all phases
    for phase, estimator, gate, num_rollouts in choices:
        own = step_seconds((phase.config, estimator, gate, num_rollouts), shape, plan, card)
        for part, amount in own.items():
            seconds[part] = seconds.get(part, 0.0) + amount * phase.config.run.steps / steps
    try:
        check_plan(changed, plan)
    except UserError as error:
        return Layout(keys, plan, seconds, str(error))
    return Layout(keys, plan, seconds, "")


def _with(config: Config, keys: Keys) -> Config:
    config = deepcopy(config)
    for name, value in keys.items():
        section, _, key = name.rpartition(".")
        setattr(attrgetter(section)(config), key, value)
    return config


# -- what a person sees --------------------------------------------------------------------------------


def show_layouts(config: Config, cards: str, number: int = 3) -> RenderableType:
    """The best layout of each of the best few places, its keys, and what is faster and does not fit."""
    (count, card), shape = cards_of(cards), find_shape(config.model, config.model.path)
    if shape is None:
        raise UserError(
            f"model.path: nothing here says how large {config.model.path} is: download its config.json, or take a "
            f"model that is known by name ({', '.join(NAMED)})."
        )
    check_context(config, shape)
    what = f"{count} × {card.name} for {config.model.path}"
    layouts = layouts_of(config, shape, count, card)
    fitting = best_of(layouts, what)
    best = list(
        {tuple(layout.keys.get(name) for name in PLACE): layout for layout in reversed(fitting)}.values()
    )
    best = best[::-1][:number]
    rows = []
    for place, layout in enumerate(best, 1):
        fullest = ", ".join(f"{kind} {gib:.1f}" for kind, gib in layout.gib.items())
        parts = sorted(layout.seconds.items(), key=lambda part: -part[1])
        rows.append(
            [
                str(place),
                two_digits(layout.seconds["step"]),
                two_digits(layout.gpu_hours),
                f"{fullest} of {card.gib:g}",
                f"{host_gib_of(layout.plan):.0f}",
                ", ".join(f"{name} {two_digits(s)}" for name, s in parts if name != "step" and s >= SHOWN_S),
            ]
        )
    header = ["", "s a step", "GPU hours", "fullest moment, GiB", "host, GiB", "seconds of"]
    table = plain_table(header, rows, align="rrrrrl", title=f"The best layouts on {what}")
    lines = [f"{place}: {' '.join(layout.words)}" for place, layout in enumerate(best, 1)]
    faster = [each for each in layouts if each.problem and each.order[0] < best[0].order[0]]
    if faster:
        lines.append(
            f"The next faster one ({two_digits(faster[-1].seconds['step'])} s) does not fit: "
            f"{' '.join(faster[-1].words)}\n{faster[-1].problem}"
        )
    lines.append("Estimates from the model's shape and data sheets; nothing of this was measured on a GPU.")
    return Lines(table, *(Text(f"{line}\n", no_wrap=True, overflow="ignore") for line in lines))
