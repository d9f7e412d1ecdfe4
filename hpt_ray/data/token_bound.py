"""How few tokens a text can have: one that is certainly too long is not tokenised to find that out.

fewest = fewest_tokens(tokenizer)     # None: this tokenizer allows no bound
fewest(text) > limit                  # then tokenising would come to the same, minutes later
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerFast

# The parts of a tokenizer that drop nothing but white space. Composition makes one character of at most four.
KEEPING = {
    "ByteLevel", "BertPreTokenizer", "Digits", "Metaspace", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Punctuation",
    "Split", "Strip", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
COMPOSED = 4
SLICE = 1 << 16


def longest_token(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """How many characters, white space not counted, become one token at most; None where there is no such number.

    That is where a word becomes one unknown token whatever its length, or a part takes text away.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    can_be_unknown = model.get("unk_token") is not None and not model.get("byte_fallback")
    if model.get("type") != "BPE" or (can_be_unknown and model.get("fuse_unk")):
        return None
    if not all(_keeps_text(part) for part in _parts(content)):
        return None
    return COMPOSED * max(map(len, tokenizer.get_vocab()))


def exceeds(text: str, num_chars: int) -> bool:
    """Whether the text has more characters than that, white space not counted. Reads no further than it must."""
    left = num_chars
    for start in range(0, len(text), SLICE):
        left -= sum(map(len, text[start : start + SLICE].split()))
        if left < 0:
            return True
    return False


def _parts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Normalizers and pre-tokenizers, also those in a sequence."""
    waiting = [content.get("normalizer"), content.get("pre_tokenizer")]
    while waiting:
        part = waiting.pop()
        if part is None:
            continue
        inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
        waiting += inner
        if not inner:
            yield part


def _keeps_text(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":  # as of spaces by ▁
        return bool(part.get("content")) and len(part.get("pattern", {}).get("String", "xx")) == 1
    return part["type"] in KEEPING and part.get("behavior") != "Removed"
