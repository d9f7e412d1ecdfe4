"""The word-level tokenizer of the small task: 82 entries, a Hugging Face fast tokenizer.

Pieces are `\\boxed{`, runs of letters, single digits and single other characters; white space is
dropped when reading and put back around words when decoding, so that logs can be read and
`\\boxed{56}` comes back exactly. A word that is not an entry is an error, not an unknown token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
SYMBOLS = ("+", "-", "*", "=", ".", ",", "?", "x", "\\boxed{", "}")
_WORDS = (
    "Start with Subtract Add Double it What is the result "
    "Tom Ann Ben Eva He She has apples pens coins books gives away buys more How many does have now "
    "Compute Find sum of If find A rectangle length and width its perimeter "
    "boxes in each loses gets are left So answer"
)
# In no text of the task: they bring the vocabulary to the 82 entries of the recorded measurements.
_SPARE_WORDS = "if then Multiply Divide by to total"
VOCABULARY = (*SPECIAL, *"0123456789", *SYMBOLS, *_WORDS.split(), *_SPARE_WORDS.split())
VOCAB_SIZE = 82


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; ids are positions in `VOCABULARY`, all of them reachable, none to spare."""
    # Slow to import, and the names of the small task's files are asked for more often than its tokenizer.
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    pieces = Regex(r"\\boxed\{|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?=[A-Za-z]{2}|A$)"), " "),  # words stand apart on the left …
            decoders.Replace(Regex(r"(?<=[A-Za-z]{2}|^ A)$"), " "),  # … and on the right,
            decoders.Replace(Regex(r"(?<=^[.,])$"), " "),  # sentences on the right
            decoders.Fuse(),
            decoders.Replace(Regex(r" +(?= |[.,?]|$)"), ""),
            decoders.Replace(Regex(r"^ "), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
