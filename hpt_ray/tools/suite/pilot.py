"""A suite on trial: every row (model, method) with its own recipe, for two steps, on a CPU, with a tiny random model.

Only what this machine cannot have is replaced: GPUs, sizes, lengths and counts (`MOST`), the model by one of the same
architecture with two layers, files of prompts by made-up rows with the same fields, a tokenizer that is not here by
one of bytes. Each row is checked as by `--dry-run`, whole and then small, with its evaluations; then it is trained, and
the evaluations of the models before training are carried out. All is in OUT/pilot; what passed is not tried again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from hpt_ray.config.load import dump_config, load_as, steps_of_phases
from hpt_ray.config.references import written
from hpt_ray.config.schema import Config
from hpt_ray.data.benchmark_files import FIELDS
from hpt_ray.data.benchmarks import BENCHMARKS, expand
from hpt_ray.data.mini import is_mini
from hpt_ray.data.mini.base import parse_name
from hpt_ray.data.schema import make_row, write_rows
from hpt_ray.data.tokenizer import load_tokenizer
from hpt_ray.driver.data_card import make_card
from hpt_ray.errors import UserError
from hpt_ray.evaluation.plan import load_evaluation, make_plan
from hpt_ray.tools.plan import plan_run, survey
from hpt_ray.tools.plan.shape import NAMED, local_folder
from hpt_ray.tools.suite.jobs import Job, Launcher
from hpt_ray.tools.suite.matrix import RunSpec
from hpt_ray.tools.suite.passes import BASE, Evaluation
from hpt_ray.tools.suite.queue import Journal, Queue
from hpt_ray.tools.suite.runner import Done
from hpt_ray.tools.suite.state import state_of

TIMEOUT_S = 900.0  # for two steps of a tiny model
MOST: dict[str, Any] = {  # of every key of this name
    **{"steps": 2, "prompts_per_step": 4, "updates_per_step": 2, "warmup_steps": 1, "every": 1, "samples": 2},
    "rehearsal_per_step": 2,
    **{"max_response_tokens": 64, "max_tokens_per_micro_batch": 2048, "kv_cache_gib": 0.125},
    **{"num_workers": 1, "num_ranks": 1, "num_processes": 1, "tensor_parallel": 1},
    "sequence_parallel": 1,
    **{"num_gpus": 0, "num_cpus": 0.4, "offload_optimizer": False},
}
FILES = ("train", "rehearsal", "sets")  # keys that name files of prompts
SIZES = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 32}  # the least that vLLM serves on CPUs
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Pilot:
    """`results`: what is wrong with each row, by id; "" for nothing. `absent`: what was not here to be checked."""

    def __init__(self, done: Done) -> None:
        self.folder, self._parallel = (done.suite.out / "pilot").absolute(), done.suite.keys.parallel
        self.rows = [*{run.pair: run for run in done.planned[::-1]}.values()][::-1]  # of seeds the first
        self.results, self.absent = dict[str, str](), dict[str, None]()
        self._ready: list[RunSpec] = []
        self._refusals: dict[str, str | None] = {}  # most rows have the same data and reward
        asked = {(e.kind, e.model, e.method): e for e in done.evaluations_to_be[::-1]}  # of bases the first
        self._evaluations = [replace(e, out=self.folder / "evaluations" / e.id) for e in asked.values()]
        self._prompts = str(self.folder / "prompts.parquet")
        write_rows(Path(self._prompts), made_up_rows(), FIELDS)
        for name in ("configs", "logs"):
            (self.folder / name).mkdir(exist_ok=True)

    def check(self, row: RunSpec) -> None:
        """Everything that can be said before a start. Writes what `jobs` needs."""
        try:
            small = replace(row, config=self.small(row.config))
            for config in (row.config, small.config):
                found, absent = survey(config, ask_room=False)
                self.absent |= dict.fromkeys(absent)
                plan_run(config, found)
                key = repr([written(part) for part in (config.data, config.reward, config.phases)])
                if found and key not in self._refusals:
                    self._refusals[key] = make_card(config, found).refusal
                if refusal := self._refusals.get(key):
                    raise UserError(refusal)
            for evaluation in self._evaluations:
                if evaluation.asked_as is row or (evaluation.model, evaluation.method) == row.pair:
                    self._check_evaluation(small, evaluation)
            dump_config(small.config, self.folder / "configs" / f"{row.id}.yaml")
            self.results[row.id] = ""
            self._ready.append(small)
        except UserError as error:
            self.results[row.id] = " ".join(str(error).split())
            (self.folder / "logs" / f"{row.id}.log").write_text(f"{error}\n", encoding="utf-8")

    def _check_evaluation(self, small: RunSpec, evaluation: Evaluation) -> None:
        """As it is asked, of made-up prompts. A base's is then written down as it can be carried out here."""
        names = [name for name in expand(evaluation.keys["benchmarks"]) if not is_mini(BENCHMARKS[name].path)]
        keys = {"model": small.config.model.path, "sets": dict.fromkeys(names, self._prompts)}
        replace(evaluation, keys={**evaluation.keys, **keys}, asked_as=small).write_configuration()
        config = load_evaluation(str(evaluation.file), [])
        make_plan(config)
        config.pass_k = [k for k in config.pass_k if k <= MOST["samples"]]
        tree = written(config)
        dump_config(self._limited(tree) | {"data": tree["data"], "cluster": {}}, evaluation.file)

    def jobs(self) -> list[Job]:
        """What can start and has not passed before."""
        jobs, logs = [], self.folder / "logs"
        for row in self._ready:
            words = ("hpt_ray.main", "--config", str(self.folder / "configs" / f"{row.id}.yaml"))
            if not state_of(row).is_done:
                jobs.append(Job(row.id, words, logs / f"{row.id}.log"))
        bases = [e for e in self._evaluations if e.method == BASE and e.file.is_file()]
        self.results |= dict.fromkeys((base.id for base in bases), "")
        return jobs + [base.job(logs) for base in bases if not base.is_done]

    async def fly(self, jobs: Sequence[Job], launcher: Launcher, console: Console) -> None:
        journal = Journal(self.folder / "journal.jsonl")
        queue = Queue(launcher, journal, console, self._parallel, TIMEOUT_S, len(jobs))
        self.results |= {name: outcome.error for name, outcome in (await queue.run(jobs)).items()}

    def small(self, full: Config) -> Config:
        """A row as it is tried here. Raises `UserError` for a model of which nothing here tells the architecture."""
        tree = self._limited(written(full)) | {"cluster": {}}
        tree["run"]["dir"], tree["checkpoint"]["mirror"] = str(self.folder / "runs"), None
        tree["observe"]["trackers"] = []
        config = load_as(Config, None, [], base={full.run.name: tree})
        config.run.steps = sum(steps_of_phases(config)) or config.run.steps
        for section in (config.model, config.reference):
            section.path = section.path and self._model(config, section.path)
        return config

    def _limited(self, value: Any, name: str = "") -> Any:
        """A part of a configuration, with what this machine can have of it."""
        if isinstance(value, dict):
            return {key: self._limited(part, name if name in FILES else key) for key, part in value.items()}
        if isinstance(value, list):
            return [self._limited(part, name) for part in value]
        if name in FILES:
            return value if is_mini(value) else self._prompts
        return min(value, MOST[name]) if name in MOST and value is not None else value

    def _model(self, config: Config, path: str) -> str:
        """A folder with a tiny model of the architecture of `path`, and its tokenizer."""
        if is_mini(path):
            return "mini:{0.size}-{0.architecture}-fresh".format(parse_name(path))
        name, source = Path(path).name, local_folder(path)
        if source is None and name not in NAMED:
            raise UserError(
                f"{path} is not here, so its architecture is not known. Fetch its config.json and tokenizer: "
                f"hf download {path} --exclude '*.safetensors'"
            )
        tokenizer = load_tokenizer(str(source)) if source else byte_tokenizer(config.data.end_token)
        tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        keys: dict[str, Any] = SIZES | tokens
        shape = AutoConfig.from_pretrained(source, **keys) if source else NAMED[name](**keys)
        folder = self.folder / "models" / f"{config.run.name}-{name}"
        torch.manual_seed(0)
        disable_progress_bar()
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


def made_up_rows() -> Iterator[dict[str, Any]]:
    """Prompts with demonstrations. The answer is a digit, which can be the label of a choice, too."""
    for i, j in product(range(1, 5), repeat=2):
        shown = f"{i} and {j} make \\boxed{{{i + j}}}."
        extra = {"split": "train", "index": 4 * i + j, "id": f"{i}-{j}", "level": "1"}
        yield make_row(f"What is {i} + {j}?", shown, str(i + j), data_source="pilot", extra_info=extra)


def byte_tokenizer(end_token: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: it reads any text, as Qwen's and Llama's do."""
    end = end_token or "<|endoftext|>"
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), end, "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(pieces[256:])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end, chat_template=CHATML)
