"""TRL's side of `against_trl.py`: GRPO steps on a given model and prompts; when each step ended.

    PYTHON-WITH-TRL benchmarks/trl_grpo.py SETTINGS.json RESULT.json

Runs in an environment of its own, so it imports nothing of hpt_ray. `coin`, the reward, is used by both sides.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any


def coin(response: str, _: Any = None) -> float:
    """1 for half of all texts, else 0: the same text always gets the same."""
    return float(zlib.crc32(response.encode()) & 1)


def main() -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    num_samples = settings["prompts"] * settings["rollouts"]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        processing_class=PreTrainedTokenizerFast.from_pretrained(settings["model"]),
        reward_funcs=lambda completions, **_: [coin(text) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in settings["texts"]]),
        callbacks=[Clock()],
        args=GRPOConfig(
            output_dir=settings["folder"],
            max_steps=settings["steps"],
            num_generations=settings["rollouts"],
            per_device_train_batch_size=settings["samples_per_micro_batch"],
            gradient_accumulation_steps=num_samples // settings["samples_per_micro_batch"],
            max_completion_length=settings["max_tokens"],
            temperature=1.0,
            loss_type="grpo",
            beta=0.0,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            shuffle_dataset=False,
            use_transformers_continuous_batching=settings["continuous_batching"],
            seed=settings["seed"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    result = {
        "step_ends_s": ends,
        "log": trainer.state.log_history,
        "versions": {name: version(name) for name in ("trl", "transformers", "torch", "accelerate")},
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
