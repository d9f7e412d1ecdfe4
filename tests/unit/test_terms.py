"""What a user reads is in the field's words: no term of version 0.1 is left in a page, a message, a key or a metric.

Read are the pages, all texts in the code that are no docstring, the fields of its records (they become keys of JSON
files and columns), its classes and the watch page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = {  # term of version 0.1 → today's
    r"questions?": "prompt",
    r"graders?": "reward function",
    r"verdicts?": "outcome or RewardResult",
    r"visits?": "attempt",
    r"fleets?": "engine group",
    r"keepers?": "checkpoint manager",
    r"carriers?": "backend",
    r"staleness": "off-policy steps",
    r"logps?": "logprobs",
    r"sight": "monitoring",
    r"cut": "truncated",
    r"tokens per microbatch": "max_tokens_per_micro_batch",
    r"normalizers?": "loss aggregation",
    r"(?:training|weighed|skipped|demo|trained) rows?|rows? (?:mean|sum)": "sample",
    r"rows? of (?:the|one) (?:table|estimator)\b.*": "algorithm",
    r"answers? of (?:a|the) model|model's answers?|sampled answers?|max answer tokens": "response",
}
ANY = re.compile(rf"\b(?:{'|'.join(PRIVATE)})\b", re.IGNORECASE)
ALLOWED = (  # where, what, why
    ("hpt_ray/config/renamed.py", ".*", "the table of old names"),
    ("CHANGELOG.md", ".*", "shows the old names beside today's"),
    ("docs/library.md", "logps?", "names of TRL and of verl"),
    ("hpt_ray/data/*.py", "questions?", "column of GSM8K, Alpaca and others"),
    ("hpt_ray/data/template.py", "questions?", "a base model's prompt in an example"),
    ("hpt_ray/reward/functions/call.py", "questions?", "a parameter of users' reward functions"),
    ("docs/data.md", "questions?", "column of GSM8K"),
    ("docs/reward.md", "questions?", "the prompt of a model that judges, in an example"),
    ("docs/glossary.md", "questions?|graders?|staleness", "others' words, for who looks for them"),
    ("hpt_ray/data/token_bound.py", "normalizers?", "a key of tokenizer.json"),
    ("hpt_ray/tools/suite/dynamics.py", "verdicts?", "whether a claim of the paper holds"),
)


def texts_of(code: str) -> Iterator[str]:
    """Texts that are no docstring, annotated fields of classes, names of classes."""
    tree = ast.parse(code)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield re.sub(r"(?<=[a-z])(?=[A-Z])", " ", node.name)
            yield from (
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            )


def found_in(text: str) -> Iterator[str]:
    """The private terms of a text, in which `_` parts words."""
    plain = text.replace("_", " ")
    yield from (match[0] for match in ANY.finditer(plain))


def left_in(where: str, texts: Iterator[str]) -> list[str]:
    allowed = [term for path, term, _ in ALLOWED if fnmatch(where, path)]
    return [
        f"{where}: {found!r} in {text[:100]!r}"
        for text in texts
        for found in found_in(text)
        if not any(re.fullmatch(term, found, re.IGNORECASE) for term in allowed)
    ]


def pages() -> list[Path]:
    page = ROOT / "hpt_ray" / "tools"
    return [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *page.glob("*/templates/*"),
        *page.glob("*/page/*.html"),
        *page.glob("*/page/*.js"),
    ]


def test_pages_say_it_in_the_fields_words() -> None:
    assert len(pages()) > 30
    left = [
        line
        for page in pages()
        for line in left_in(str(page.relative_to(ROOT)), iter(page.read_text("utf-8").splitlines()))
    ]
    assert not left, "\n".join(left)


def test_messages_keys_metrics_and_fields_are_in_the_fields_words() -> None:
    files = sorted((ROOT / "hpt_ray").rglob("*.py"))
    left = [
        line
        for file in files
        for line in left_in(str(file.relative_to(ROOT)), texts_of(file.read_text("utf-8")))
    ]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "code",
    [
        'raise UserError("3 answers of the model were cut")',
        'print(f"{n} training rows")',
        'Metric("policy/logp_gap", "nats", "Gap.")',
        "class Grader:\n    pass",
        "class Card:\n    max_staleness: int = 0",
    ],
)
def test_a_private_term_is_found(code: str) -> None:
    assert left_in("hpt_ray/some.py", texts_of(code))


def test_a_docstring_and_a_plain_row_of_a_file_are_no_finding() -> None:
    assert not left_in("hpt_ray/some.py", texts_of('"""A verdict."""\nprint("row 7 has no prompt")'))
    assert not left_in("hpt_ray/some.py", texts_of('x = "executed, shortcut, longsighted"'))


@pytest.mark.parametrize(("where", "term", "why"), ALLOWED)
def test_every_exception_is_needed(where: str, term: str, why: str) -> None:
    found = [
        word
        for file in ROOT.glob(where)
        for text in (texts_of(file.read_text("utf-8")) if file.suffix == ".py" else [file.read_text("utf-8")])
        for word in found_in(text)
    ]
    assert any(re.fullmatch(term, word, re.IGNORECASE) for word in found), f"{where}: not needed for {why}"
