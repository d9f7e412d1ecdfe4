"""Which weights `model=…` means, and what is known about how they were trained.

A run folder stands for its newest checkpoint and a checkpoint for its Hugging Face export. Where the run is
known, its template and its reward function are where an evaluation starts from: the model is asked as it was
trained, and the reward function that trained is the one that evaluates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt_ray.checkpoint.store import CheckpointStore
from hpt_ray.config.load import load_run_config
from hpt_ray.config.references import written
from hpt_ray.config.schema import Config
from hpt_ray.data.mini import is_mini
from hpt_ray.data.model_folder import check_folder
from hpt_ray.errors import UserError

MODEL_KEYS = ("dtype", "config_overrides", "trust_remote_code")
DATA_KEYS = ("columns", "template", "chat_template_kwargs", "add_bos", "system_prompt", "end_token")
REWARD_KEYS = (
    "function",
    "functions",
    "headers",
    "environment",
    "require_finished",
    "timeout_s",
    "memory_mb",
)
SMALL_TASK = {"data": {"template": "plain", "add_bos": True}, "reward": {"function": "boxed"}}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path`: a folder of weights, a Hub name or `mini:…`. `run`: the run folder that trained it, if any."""

    name: str
    path: str
    run: Path | None = None


def locate_model(uri: str) -> ModelSource:
    """What `model=uri` means. Raises UserError for a folder that holds no model."""
    folder = Path(uri).expanduser()
    if is_mini(uri) or not folder.is_dir():  # a Hub name, or what the tokenizer's loading will refuse
        check_folder(uri, key="model")
        return ModelSource(uri.strip("/.~").replace(":", "-").replace("/", "-"), uri)
    folder = folder.resolve()
    if _is_run(folder):
        folder = _newest_checkpoint(folder)
    if (folder / "hf").is_dir():
        folder = folder / "hf"
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model={uri}: no config.json in {folder}. Give a model folder, a run or a checkpoint."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model={uri}: no safetensors weights in {folder}. Other formats can hold code and are not loaded: "
            "convert the model to safetensors."
        )
    run = next((parent for parent in folder.parents[:3] if _is_run(parent)), None)
    if run is None:
        return ModelSource(folder.name, str(folder))
    checkpoint = folder.relative_to(run / "checkpoints").parts[0]
    return ModelSource(f"{run.name}-{checkpoint}", str(folder), run)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def _newest_checkpoint(run: Path) -> Path:
    found = CheckpointStore(run / "checkpoints", keep=0).latest()
    if found.path is None or found.rejected:
        reasons = "; ".join(found.rejected.values()) or "there is none"
        raise UserError(
            f"model={run}: its newest checkpoint cannot be used ({reasons}). Name one: model={run}/checkpoints/…"
        )
    return found.path


def settings_of(source: ModelSource) -> dict[str, dict[str, Any]]:
    """The evaluation's keys that follow from the model: name for messages → nested keys."""
    if is_mini(source.path):
        return {"the small task": SMALL_TASK}
    if source.run is None:
        return {}
    path = source.run / "config.yaml"
    return {str(path): as_trained(load_run_config(path))}


def as_trained(config: Config) -> dict[str, Any]:
    """The evaluation's keys that follow from a run's configuration: how it asks and grades, and starts engines."""
    model, data, reward = (written(part) for part in (config.model, config.data, config.reward))
    return {
        **{name: model[name] for name in MODEL_KEYS},
        "data": {name: data[name] for name in DATA_KEYS},
        "reward": {name: reward[name] for name in REWARD_KEYS},
        "plugins": config.run.plugins,
        "rollout": {"start_timeout_s": config.rollout.start_timeout_s},
    }


def fingerprint(path: str) -> str:
    """Changes when the files of a model folder do: their names, sizes and times. A name stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted(file for file in folder.iterdir() if file.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{path} {hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
