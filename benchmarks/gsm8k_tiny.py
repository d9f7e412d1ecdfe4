"""GSM8K from the published files to a falling held-out loss: 20 steps of the real run with a tiny model.

    python benchmarks/gsm8k_tiny.py --source ../shared/data/gsm8k --out benchmarks/results/gsm8k_tiny.json

Reads `train.jsonl` and `test.jsonl` from the source folder. Prepares the prompt files, trains a byte-level
BPE tokenizer on the training prompts and demonstrations, writes a Qwen2 configuration to go with it, and
runs `python -m hpt_ray.main --config configs/gsm8k_tiny.yaml`: the model starts from random weights, so HPT
trains on demonstrations. Writes one JSON with versions, machine, settings, the loss on held-out
demonstrations at each evaluation, what became of every row, and `result`. Downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from machine import machine, versions, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from hpt_ray.config.load import load_config
from hpt_ray.config.schema import Config
from hpt_ray.data.dataset import load_prompts
from hpt_ray.data.prepare import prepare_gsm8k
from hpt_ray.data.template import Template
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.observe.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "gsm8k_tiny.yaml"
VOCAB_SIZE = 2000
SPECIAL = ["<pad>", "<eos>"]
MODEL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}  # of 32 dimensions: vLLM takes no less on a CPU
HELD_OUT = 256  # the first prompts of the test split
METRIC = "eval/test/demonstration_loss"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="prompts of the test split")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run to replace")
    arguments = parser.parse_args()
    head = {"benchmark": "gsm8k_tiny", "versions": versions(), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        report = head | measure(arguments.source, Path(folder), arguments.held_out, arguments.overrides)
    write(arguments.out, report)


def measure(source: Path, folder: Path, num_eval_sets: int, overrides: list[str]) -> dict[str, Any]:
    """Prepare everything in `folder`, run, and put together what came of it."""
    counts = prepare_gsm8k(source, folder)
    eval_sets = pq.read_table(folder / "test.parquet").slice(0, num_eval_sets)
    pq.write_table(eval_sets, folder / "eval_sets.parquet")
    model = folder / "model"
    write_tokenizer(folder / "train.parquet", model)
    write_model_config(model)
    words = [
        f"model.path={model}",
        f"data.train=[{folder}/train.parquet]",
        f"evaluation.sets={{test: {folder}/eval_sets.parquet}}",
        f"run.dir={folder}/runs",
        *overrides,
    ]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hpt_ray.main", "--config", str(CONFIG), *words], cwd=ROOT, check=True
    )
    wall_s = time.perf_counter() - begin
    run = RunFolder(folder / "runs" / "latest")
    lines = run.read_metrics()
    summary = json.loads(run.summary.read_text(encoding="utf-8"))

    config = load_config(CONFIG, words)
    accounts = {
        "train": account_of(config, folder / "train.parquet", model),
        "test": account_of(config, folder / "eval_sets.parquet", model),
    }
    losses = [{"step": line["step"], "loss": line[METRIC]} for line in lines if METRIC in line]
    expected = {"train": counts["train"], "test": min(num_eval_sets, counts["test"])}
    return {
        "settings": {
            "config": str(CONFIG.relative_to(ROOT)),
            "overrides": overrides,
            "vocab_size": VOCAB_SIZE,
            "model": MODEL | HEADS,
            "steps": config.run.steps,
            "prompts_per_step": config.prompts_per_step,
            "group_size": config.group_size,
            "max_prompt_tokens": config.data.max_prompt_tokens,
            "max_response_tokens": config.data.max_response_tokens,
            "learning_rate": config.learner.learning_rate,
        },
        "rows": accounts,
        "eval_demonstration_loss": losses,
        "training_demonstration_loss": [line.get("learner/demo_loss") for line in lines if line["step"]],
        "demo_prompt_ratio": [line["selection/demo_prompt_ratio"] for line in lines if line["step"]],
        "seconds": {"wall": wall_s, "startup": summary["startup_s"], "training": summary["training_s"]},
        "result": {
            "falls_steadily": len(losses) > 1 and all(b["loss"] < a["loss"] for a, b in pairwise(losses)),
            "first_loss": losses[0]["loss"],
            "last_loss": losses[-1]["loss"],
            "every_row_accounted_for": all(adds_up(accounts[name], rows) for name, rows in expected.items())
            and summary["dropped_rows"] == dropped(accounts["train"]),
            "failures": summary["failures"],
        },
    }


def write_tokenizer(prompts: Path, folder: Path) -> None:
    """A byte-level BPE tokenizer of `VOCAB_SIZE` entries, trained on the prompts and demonstrations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(prompts), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    fast.save_pretrained(folder)


def texts(prompts: Path) -> Iterator[str]:
    for row in pq.read_table(prompts, columns=["prompt", "target"]).to_pylist():
        yield from (message["content"] for message in [*row["prompt"], *row["target"]])


def write_model_config(folder: Path) -> None:
    """Only config.json: `model.random_init` draws the weights."""
    pad, eos = range(len(SPECIAL))
    Qwen2Config(
        **MODEL,
        **HEADS,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=eos,
        dtype="float32",
        architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)


def account_of(config: Config, prompts: Path, model: Path) -> dict[str, int | float]:
    """What became of the rows of one file; the run has read it before, so this opens the cache."""
    return load_prompts(
        [str(prompts)],
        Template(config.data, load_tokenizer(str(model))),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.data.max_response_tokens,
        demonstrations="optional",
    ).report()


def dropped(account: dict[str, int | float]) -> dict[str, int | float]:
    """Rows dropped, by reason."""
    prefix = "dropped/"
    return {name.removeprefix(prefix): count for name, count in account.items() if name.startswith(prefix)}


def adds_up(account: dict[str, int | float], rows: int) -> bool:
    """rows = kept + Σ dropped, and the rows are those of the published file."""
    return account["rows"] == rows == account["kept"] + sum(dropped(account).values())


if __name__ == "__main__":
    main()
