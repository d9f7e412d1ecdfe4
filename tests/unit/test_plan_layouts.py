"""The choice of a layout: valid, fitting, no worse with more memory, and written as keys that the plan accepts."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from hpt_ray.config.checks import check_config
from hpt_ray.config.load import load_config
from hpt_ray.config.schema import RolloutConfig
from hpt_ray.errors import UserError
from hpt_ray.main import main
from hpt_ray.tools.plan import check_plan, find_shape, make_plan
from hpt_ray.tools.plan.layouts import Layout, best_of, cards_of, layouts_of, show_layouts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import layouts as benchmark  # noqa: E402


@cache
def found(model: str, cards: str, *words: str, gib: float = 0.0) -> tuple[Layout, ...]:
    config = load_config(None, [f"model.path={model}", *benchmark.WORDS, *words])
    shape = find_shape(config.model, model)
    assert shape is not None
    count, card = cards_of(cards)
    return tuple(layouts_of(config, shape, count, replace(card, gib=gib or card.gib)))


@pytest.mark.parametrize(
    ("model", "cards", "words"),
    [
        ("Qwen2.5-0.5B", "1x24", ()),
        ("Qwen2.5-Math-7B", "1x48", ()),
        ("Qwen2.5-Math-7B", "8x80", ()),
        ("Qwen3-30B-A3B", "8x141", ()),
        ("Qwen2.5-Math-7B", "8x80", ("algorithm.name=ppo", "critic.num_gpus=1", "critic.num_ranks=4")),
        ("Qwen2.5-0.5B", "2x80", ("algorithm.name=sft",)),
    ],
)
def test_the_normal_plan_accepts_the_words_of_a_choice(
    model: str, cards: str, words: tuple[str, ...]
) -> None:
    best = best_of(found(model, cards, *words), cards)
    assert best
    for layout in best:
        config = load_config(None, [f"model.path={model}", *benchmark.WORDS, *words, *layout.words])
        check_config(config)
        plan = make_plan(config, find_shape(config.model, model))
        check_plan(config, plan)
        assert plan == layout.plan
        assert plan.num_gpus == cards_of(cards)[0]
        assert layout.seconds["step"] > 0


def test_only_what_fits_is_chosen_and_the_fastest_first() -> None:
    layouts = found("Qwen2.5-Math-7B", "8x48")
    assert any(layout.problem for layout in layouts)
    for layout in layouts:
        assert bool(layout.problem) == (layout.missing_gib > 0)
    seconds = [layout.seconds["step"] for layout in best_of(layouts, "")]
    assert seconds[0] <= 1.1 * min(seconds), "two digits are what an estimate is worth"
    # 28 heads do not go into 8 parts.
    assert {layout.keys["rollout.tensor_parallel"] for layout in layouts} == {1, 2, 4}


@pytest.mark.parametrize("count", [1, 8])
def test_more_memory_gives_no_slower_choice(count: int) -> None:
    """Of cards of the same speed; adapters, which are less work, come in only where nothing else fits."""
    chosen = {}
    for gib in (24, 32, 48, 80, 141, 192):
        fitting = [each for each in found("Qwen2.5-Math-7B", f"{count}x80", gib=gib) if not each.problem]
        if fitting:
            chosen[gib] = fitting[0]
    whole = [each.order[0] for each in chosen.values() if "learner.lora.rank" not in each.keys]
    assert len(whole) > 1
    assert whole == sorted(whole, reverse=True)
    adapters = [gib for gib, each in chosen.items() if "learner.lora.rank" in each.keys]
    assert all(gib < min(chosen.keys() - set(adapters)) for gib in adapters)


def test_what_fits_nowhere_is_told_with_what_is_missing() -> None:
    layouts = found("Qwen2.5-32B", "1x24")
    with pytest.raises(UserError, match=r"no layout fits\. The nearest is short of \d+\.\d GiB") as refused:
        best_of(layouts, "1 × RTX 4090")
    short = min(layout.missing_gib for layout in layouts)
    assert f"{short:.1f} GiB" in str(refused.value)
    assert "The largest part is" in str(refused.value)
    assert any("learner.lora.rank=32" in layout.words for layout in layouts), "the last resort was tried"


def test_what_a_layout_costs_in_time() -> None:
    """Offload, taking turns and several GPUs an engine are paid for."""

    def one(layouts: tuple[Layout, ...], **keys: object) -> Layout:
        named = {"rollout.tensor_parallel": 1, "learner.offload_optimizer": False, "learner.zero_stage": 1}
        named |= {name.replace("__", "."): value for name, value in keys.items()}
        return next(each for each in layouts if named.items() <= each.keys.items())

    layouts = found("Qwen2.5-Math-7B", "8x141")
    taken = {"cluster__colocate": True, "cluster__take_turns": True}
    turns = one(layouts, **taken)
    assert turns.seconds["turns"] > 1
    assert one(layouts, **taken, learner__zero_stage=3).seconds["exchange"] > turns.seconds["exchange"]
    assert "turns" not in one(layouts, cluster__colocate=True, cluster__take_turns=False).seconds
    apart = {"cluster__colocate": False, "learner__num_ranks": 4}
    assert "turns" not in one(layouts, **apart).seconds
    offloaded = one(layouts, learner__offload_optimizer=True, **apart)
    assert offloaded.seconds["offload"] > 0
    assert offloaded.seconds["step"] > one(layouts, **apart).seconds["step"]
    shared = found("Qwen2.5-Math-7B", "8x141", "learner.num_ranks=4", "learner.sequence_parallel=4")
    assert one(shared, **apart).seconds["exchange"] > one(layouts, **apart).seconds["exchange"]
    for layout in layouts:
        parts = [amount for part, amount in layout.seconds.items() if part != "step"]
        assert max(parts) <= layout.seconds["step"] <= sum(parts) * (1 + 1e-9)


def test_graphs_make_a_small_model_faster_and_the_engine_s_own_word_counts() -> None:
    said = found("Qwen2.5-0.5B", "1x80", "rollout.engine={enforce_eager: true}")
    key = found("Qwen2.5-0.5B", "1x80", "rollout.enforce_eager=true")
    assert [(each.keys, each.seconds) for each in said] == [(each.keys, each.seconds) for each in key]
    assert said[0].seconds["generation"] > found("Qwen2.5-0.5B", "1x80")[0].seconds["generation"]
    assert RolloutConfig(num_gpus=1, enforce_eager=True, engine={"enforce_eager": False}).is_eager is False


def test_the_command_shows_the_best_and_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.path=Qwen2.5-Math-7B", *benchmark.WORDS]
    assert main(["--dry-run", "--cards", "8x48", *words]) == 0
    said = capsys.readouterr().out
    best = best_of(found("Qwen2.5-Math-7B", "8x48"), "")[0]
    assert f"1: {' '.join(best.words)}\n" in said, "on one line, to be copied"
    assert "measured" in said
    assert main(["--dry-run", "--cards", "8x81", *words]) == 2
    assert "write their number and the GiB of one, as 8x80" in capsys.readouterr().err
    assert main(["--dry-run", "--cards", "1x24", "model.path=Qwen2.5-32B", *benchmark.WORDS]) == 2
    assert "GiB a GPU" in capsys.readouterr().err


def test_a_faster_one_that_does_not_fit_is_explained() -> None:
    config = load_config(None, ["model.path=Qwen2.5-32B", *benchmark.WORDS])
    console = Console(width=120, file=io.StringIO())
    console.print(show_layouts(config, "8x80"), crop=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "does not fit" in text
    assert "`cluster.gpu_memory_gib` is 79" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(("rollout.max_off_policy_steps=1",), "max_off_policy_steps"), (("critic.num_gpus=1",), None)],
)
def test_rules_that_leave_no_layout_are_told(words: tuple[str, ...], message: str | None) -> None:
    if message is None:
        words, message = (*words, "algorithm.name=ppo"), "too few"
    with pytest.raises(UserError, match=message):
        found("Qwen2.5-0.5B", "1x80", *words)


def test_the_page_and_its_json_say_what_the_plan_says() -> None:
    report = json.loads((benchmark.RESULTS / "layouts.json").read_text(encoding="utf-8"))
    assert benchmark.page(report) == benchmark.PAGE.read_text(encoding="utf-8"), (
        "run `python benchmarks/layouts.py --pages`"
    )
    assert report["measured"] is False
    for size, cards in (("7B", "1x48"), ("0.5B", "8x80")):
        assert report["layouts"][size][cards] == benchmark.layout(benchmark.MODELS[size], cards), (
            "run `python benchmarks/layouts.py`"
        )
