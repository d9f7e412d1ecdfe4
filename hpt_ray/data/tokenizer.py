"""Loading the tokenizer of a model: one function, used by the driver and by every rollout worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hpt_ray.data.model_folder import ask_hub, is_path
from hpt_ray.errors import UserError, in_one_line

# A folder that names one of these says: tokenizer.json is all there is to know.
GENERIC_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder or Hub name. Raises `UserError` where there is none.

    For some architectures, Qwen2 among them, `AutoTokenizer` replaces a tokenizer of the user's own by
    the architecture's, with other ids and no word of it. A folder with a generic tokenizer class is
    therefore read as what it says.
    """
    if trust_remote_code:
        print(
            f"warning: model.trust_remote_code is true: Python code that comes with {path} runs in the driver and "
            "in every actor, and may do what you may.",
            file=sys.stderr,
        )
    folder = Path(path).expanduser()
    if is_path(path) and not folder.is_dir():
        raise UserError(f"model.path={path}: no such folder. Give a model folder, a Hub name or mini:SIZE.")
    try:
        if not folder.is_dir():
            ask_hub(path)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise OSError("no file tokenizer* in the folder")
        settings = folder / "tokenizer_config.json"
        known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        if not isinstance(known, dict):
            raise ValueError(f"{settings.name} holds a {type(known).__name__} in place of an object")
        if known.get("tokenizer_class") in GENERIC_CLASSES:
            return PreTrainedTokenizerFast.from_pretrained(folder)
        from transformers import AutoTokenizer  # which imports torch and every kind of model: seconds

        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise anything for files that they do not expect
        said = str(error).strip() if isinstance(error, OSError | ValueError) else ""
        reason = (said or in_one_line(error)).splitlines()[0].rstrip(".")
        if folder.is_dir():
            hint = "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the model's."
        else:
            hint = (
                "Check the name. A gated or private model: accept its terms on its page, and set HF_TOKEN on every "
                "node. No connection: download the model elsewhere and give its folder."
            )
        raise UserError(f"model.path={path}: no tokenizer can be read there ({reason}). {hint}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"model.path={path}: its tokenizer ({type(tokenizer).__name__}) has no fast version. Convert it to a "
            "tokenizer.json, e.g. with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`."
        )
    return tokenizer
