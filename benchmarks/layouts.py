"""The best layout of each size of model on each card: what `hpt_ray plan --cards` computes. Nothing is measured.

    python benchmarks/layouts.py           # half a minute
    python benchmarks/layouts.py --pages   # write the tables into docs/gpu.md again

Writes one JSON: for each model and cards the keys of the fastest layout that fits, its seconds a step by part, GPU
hours a step and memory; where none fits, what the nearest is short of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quickstart import RESULTS, ROOT, between_marks

from hpt_ray.config.load import load_config
from hpt_ray.tools.plan import find_shape, host_gib_of
from hpt_ray.tools.plan.layouts import cards_of, layouts_of
from hpt_ray.tools.plan.show import two_digits
from hpt_ray.tools.plan.speed import CARDS

PAGE = ROOT / "docs" / "gpu.md"
WORDS = [
    "model.dtype=bfloat16",
    "data.train=[train.parquet]",
    "data.max_prompt_tokens=512",
    "data.max_response_tokens=3584",
    "max_tokens_per_micro_batch=4096",
    "learner.gradient_checkpointing=true",
]
MODELS = {
    "0.5B": "Qwen2.5-0.5B",
    "1.5B": "Qwen2.5-Math-1.5B",
    "7B": "Qwen2.5-Math-7B",
    "8B": "Llama-3.1-8B",
    "14B": "Qwen2.5-14B",
    "32B": "Qwen2.5-32B",
    "30B-A3B": "Qwen3-30B-A3B",
}
COUNTS = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", action="store_true", help="only write the page again")
    parser.add_argument("--out", type=Path, default=RESULTS / "layouts.json", help="JSON file to write")
    arguments = parser.parse_args()
    if not arguments.pages:
        report = {
            "benchmark": "layouts",
            "measured": False,
            "settings": WORDS,
            "models": MODELS,
            "layouts": {
                size: {cards: layout(name, cards) for cards in all_cards()} for size, name in MODELS.items()
            },
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(arguments.out.read_text(encoding="utf-8"))), encoding="utf-8")


def all_cards() -> list[str]:
    return [f"{count}x{kind}" for count in COUNTS for kind in CARDS]


def layout(model: str, cards: str) -> dict[str, Any]:
    """The fastest that fits, or the nearest that does not."""
    config = load_config(None, [f"model.path={model}", *WORDS])
    shape = find_shape(config.model, model)
    assert shape is not None, "all are known by name"
    found = layouts_of(config, shape, *cards_of(cards))
    fitting = [each for each in found if not each.problem]
    best = fitting[0] if fitting else min(found, key=lambda each: each.missing_gib)
    return {
        "fits": bool(fitting),
        "missing_gib": round(max(best.missing_gib, 0.0), 1),
        "keys": dict(best.keys),
        "seconds": {part: float(f"{seconds:.3g}") for part, seconds in best.seconds.items()},
        "gpu_hours_a_step": float(f"{best.gpu_hours:.3g}"),
        "gib": {kind: round(gib, 1) for kind, gib in best.gib.items()},
        "host_gib": round(host_gib_of(best.plan), 1),
    }


def page(report: dict[str, Any]) -> str:
    return between_marks(PAGE.read_text(encoding="utf-8"), tables(report), of="layouts.json")


def tables(report: dict[str, Any]) -> str:
    """One for each number of cards: a line a model, a column a card."""
    parts = []
    for count in COUNTS:
        head = [
            f"{count} card{'s' if count > 1 else ''} of",
            *(f"{kind} GB ({CARDS[kind].name})" for kind in CARDS),
        ]
        rows = [
            [size, *(cell(cards[f"{count}x{kind}"]) for kind in CARDS)]
            for size, cards in report["layouts"].items()
        ]
        parts.append(
            "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]) + "\n"
        )
    return "\n".join(parts)


def cell(found: dict[str, Any]) -> str:
    """Example: `in turns, ZeRO 2: 120 s, 0.27`."""
    keys = found["keys"]
    if not found["fits"]:
        return f"none, {found['missing_gib']:.0f} GiB short"
    engines, ranks, split = (
        keys[name] for name in ("rollout.num_workers", "learner.num_ranks", "rollout.tensor_parallel")
    )
    place = f"{engines * split} + {ranks}"
    if keys["cluster.colocate"]:
        place = "in turns" if keys["cluster.take_turns"] else "both stay"
    words = [place, *([f"TP {split}"] if split > 1 else []), f"ZeRO {keys['learner.zero_stage']}"]
    words += ["offload"] if keys["learner.offload_optimizer"] else []
    words += ["LoRA"] if keys.get("learner.lora.rank") else []
    return f"{', '.join(words)}: {two_digits(found['seconds']['step'])} s, {two_digits(found['gpu_hours_a_step'])}"


if __name__ == "__main__":
    main()
