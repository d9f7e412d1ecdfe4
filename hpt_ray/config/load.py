"""YAML files and `key=value` words in; one checked `Config` out, or another root of sections (`load_as`).

Sources are merged in this order, and a later one wins: the defaults of the schema, the files named under
`defaults:` at the top of a file (paths relative to that file), the file itself, further files in the same
way, the command line. Dicts are merged key by key, but `{}` empties one; lists are replaced.

Everything wrong is collected and raised as one `UserError` that names the source, the full key and what
to do: an unknown key (with the nearest known one), a wrong type, a value that is not allowed, a key that
must be set. Rules that concern more than one key are in `checks.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hpt_ray.config import foreign, renamed
from hpt_ray.config.references import FromEnvironment, keep_references, written
from hpt_ray.config.schema import Config
from hpt_ray.errors import UserError

COMMAND_LINE = "command line"
QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"  # where no file is named
Root = TypeVar("Root")
yaml.SafeDumper.add_representer(FromEnvironment, lambda dumper, text: dumper.represent_str(text.reference))
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
_NUMBERS = (int, float, int | None, float | None, list[int], list[float])
_NEAREST_CUTOFF = 0.6  # below this likeness a suggestion would confuse more than help


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One key of the schema. Example: `KnownKey("run.steps", int, "Steps to …", 100, (), 0)`."""

    name: str
    type: Any
    doc: str
    default: Any
    choices: tuple[str, ...]
    minimum: float | None

    @property
    def type_name(self) -> str:
        return self.type.__name__ if isinstance(self.type, type) else str(self.type).replace("typing.", "")


@functools.cache
def known_keys(root: type = Config) -> dict[str, KnownKey]:
    """Every key of the schema by its full name, in the order of the schema."""
    return {known.name: known for known in _keys_of(root, "")}


def load_config(path: Paths, dotlist: list[str]) -> Config:
    """Read, merge and check the configuration of a run: see `load_as`. Its steps are those of its phases."""
    config: Config
    config, sources = _load(Config, path, dotlist, {})
    if config.phases:
        steps = sum(steps_of_phases(config))
        if config.run.steps != steps and "run.steps" in sources:
            raise UserError(
                f"{sources['run.steps']}: `run.steps` is {config.run.steps}, but the phases have {steps} steps "
                f"together: leave it out, set it to {steps}, or change the `steps` of a phase."
            )
        config.run.steps = steps
    return config


def load_run_config(path: Path, dotlist: list[str] | None = None) -> Config:
    """The configuration that a run wrote into its folder, also one of an older version: see `load_config`."""
    content = renamed.config(_read_yaml(path, ()))
    return load_as(Config, None, dotlist or [], base={str(path): content})


def load_as(
    root: type[Root],
    path: Paths,
    dotlist: list[str],
    *,
    base: Mapping[str, dict[str, Any]] | None = None,
) -> Root:
    """Read, merge and check one configuration with the keys of the dataclass `root`.

    `path` is a YAML file, several of them, or None for the defaults of the schema. `dotlist` holds words
    such as `"run.steps=20"` or `"data.train=[a.parquet, b.parquet]"`; values are written as in YAML. `base`
    holds what comes before them: name for messages → nested keys. `root.PAGE` is the page of the docs
    that lists the keys.

    Raises `UserError` with one line for every problem found.
    """
    config: Root = _load(root, path, dotlist, base or {})[0]
    return config


def dump_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Write every key of `config` as YAML that this user alone may read; `load_config(path, [])` reads it back.

    What comes from the environment stays a reference; what stands in the configuration itself may still be secret.
    """
    text = yaml.safe_dump(written(config), sort_keys=False, allow_unicode=True, width=100)
    write_private(Path(path), text)


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody but this user may read."""
    path.touch(mode=0o600)
    path.chmod(0o600)  # it may be there from an older version
    path.write_text(text, encoding="utf-8")


def steps_of_phases(config: Config) -> list[int]:
    """The `steps` of each phase. Raises `UserError` where one is missing or is no count."""
    steps = [phase.get("steps") for phase in config.phases]
    for number, count in enumerate(steps, 1):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(
                f"phase {number}: `steps` is {count!r}: say how many steps it has, a whole number above 0, as in "
                "`phases: [{steps: 100, algorithm: {name: sft}}, …]`."
            )
    return typing.cast(list[int], steps)


def nearest_key(name: str, root: type = Config) -> str | None:
    """The known key or section that `name` most likely means, by its full name or by its last part."""

    def likeness(candidate: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, last), whole if "." in name and last < 1 else 1.0

    best = max([*known_keys(root), *sorted(_sections(root))], key=likeness)
    return best if likeness(best)[0] >= _NEAREST_CUTOFF else None


def hint(name: str, root: type = Config) -> str:
    """A sentence on what an unknown `name` may mean: another trainer's name for a key, or a typing error."""
    key, note = foreign.meaning(name) or ("", "")
    if key in known_keys(root):
        return f"Here it is `{key}`{note and f' ({note})'}."
    nearest, page = nearest_key(name, root), root.PAGE  # type: ignore[attr-defined]
    return f"Did you mean `{nearest}`?" if nearest else f"All keys are listed in {page}."


def hint_for_option(word: str) -> str:
    """The same for `--learning_rate=1e-6`, which is how other trainers are given it."""
    name = word.lstrip("-").partition("=")[0]
    names = (name, name.replace("-", "_"))
    known = next((f"Here it is `{each}`." for each in names if each in known_keys()), None)
    return f"{known or hint(names[1])} Keys are written without dashes: run.steps=200"


def _keys_of(cls: type, prefix: str) -> Iterator[KnownKey]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys_of(typing.cast(type, hint), f"{name}.")
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        doc, choices, minimum = (field.metadata[what] for what in ("doc", "choices", "minimum"))
        yield KnownKey(name, hint, doc, default, choices, minimum if hint in _NUMBERS else None)


def _sections(root: type) -> set[str]:
    return {known.rpartition(".")[0] for known in known_keys(root)} - {""}


# -- what the sources say ---------------------------------------------------------------------------


def _read_with_defaults(path: Path, including: tuple[Path, ...]) -> Iterator[tuple[str, dict]]:
    """The files that `path` builds on, then `path` itself, each as (name for messages, content)."""
    content = _read_yaml(path, including)
    defaults = content.pop("defaults", None) or []
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise UserError(f"{path}: `defaults` must be a list of YAML files, e.g. `defaults: [base.yaml]`.")
    chain = (*including, path.resolve())
    for name in defaults:
        other = path.parent / name
        if other.resolve() in chain:
            raise UserError(
                f"{path}: `defaults` names {other}, which is built on this file. Remove one of the two."
            )
        yield from _read_with_defaults(other, chain)
    yield str(path), content


def _read_yaml(path: Path, including: tuple[Path, ...]) -> dict:
    if not path.is_file():
        named_by = f" (named under `defaults` in {including[-1]})" if including else ""
        ours = Path(__file__).resolve().parents[1] / path  # configs/… as they come with the package
        hint = f"Is {ours} meant?" if ours.is_file() else "Check the path."
        raise UserError(f"{path}: no such configuration file{named_by}. {hint}")
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise UserError(f"{path}{line}: not valid YAML: {_reason_of(error)}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply for a configuration.") from error
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as a configuration: {error}.") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: must hold `key: value` lines, as in `run: {{steps: 20}}`; found a list.")
    return typing.cast(dict, OmegaConf.to_container(loaded, resolve=False))


def _parse_word(root: type, word: str) -> dict:
    """`a.b=c` as nested dicts. A text key takes the value as it is written, unless it is quoted or null."""
    name, equals, text = word.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{COMMAND_LINE}: `{word}` is not of the form key=value, e.g. run.steps=20.")
    known = known_keys(root).get(name)
    is_text = known is not None and known.type in (str, str | None)
    if is_text and text != "null" and not text.startswith(("'", '"')):
        return _nested(name, text)
    try:
        return typing.cast(dict, OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=False))
    except RecursionError as error:
        raise UserError(f"{COMMAND_LINE}: the value of `{name}` is nested too deeply.") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        split = (
            " A value with spaces needs quotes: 'data.train=[a.jsonl, b.jsonl]'."
            if text.startswith(("[", "{"))
            else ""
        )
        raise UserError(
            f"{COMMAND_LINE}: the value in `{word}` is not valid YAML: {_reason_of(error)}.{split}"
        ) from error


def _reason_of(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _nested(name: str, value: Any) -> dict:
    """`_nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    return functools.reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)


# -- from there to a configuration ------------------------------------------------------------------


def _load(
    root: type, path: Paths, dotlist: list[str], base: Mapping[str, dict[str, Any]]
) -> tuple[Any, dict[str, str]]:
    """The configuration, and which source set a key last."""
    contents = list(base.items())
    for one in [path] if isinstance(path, (str, os.PathLike)) else path or []:
        contents += _read_with_defaults(Path(one), ())
    contents += [(COMMAND_LINE, _parse_word(root, word)) for word in dotlist]

    problems: list[str] = []
    settings = [
        (known, value, source)
        for source, content in contents
        for known, value in _settings(root, content, source, "", problems)
    ]
    merged = OmegaConf.structured(root)
    problems += [
        f"{source}: {problem}"
        for known, value, source in settings
        if (problem := _merge(merged, known, value))
    ]
    sources = {known.name: source for known, _, source in settings}
    problems += [
        problem
        for name, known in known_keys(root).items()
        if (problem := _wrong_value(merged, known, sources.get(name, "defaults")))
    ]
    if problems:
        raise UserError("\n".join(problems))
    raw = typing.cast(dict, OmegaConf.to_container(merged, resolve=False))
    return keep_references(OmegaConf.to_object(merged), raw, raw), sources


def _settings(
    root: type, content: dict, source: str, prefix: str, problems: list[str]
) -> Iterator[tuple[KnownKey, Any]]:
    """Walk nested content down to the keys of the schema; unknown keys and misplaced values are problems."""
    for part, value in content.items():
        name = f"{prefix}{part}"
        if name in known_keys(root):
            yield known_keys(root)[name], value
        elif name in renamed.KEYS:
            problems.append(f"{source}: `{name}` was renamed to `{renamed.KEYS[name]}`.")
        elif name not in _sections(root):
            problems += [
                f"{source}: unknown key `{each}`. {hint(each, root)}"
                for each in foreign.names_in(name, value)
            ]
        elif isinstance(value, dict):
            yield from _settings(root, value, source, f"{name}.", problems)
        elif value is not None:  # a section whose keys are all commented out is None, and sets nothing
            example = next(known for known in known_keys(root) if known.startswith(f"{name}."))
            problems.append(
                f"{source}: `{name}` is a section, not a value. Set a key in it, such as `{example}`."
            )


def _merge(merged: DictConfig, known: KnownKey, value: Any) -> str | None:
    """Put one value into `merged`, or say in words why it does not fit the key's type."""
    container = typing.get_origin(known.type)
    try:
        OmegaConf.update(merged, known.name, value, merge=not (value == {} and container is dict))
    except OmegaConfBaseException:
        hint = f" Write it as a list: {known.name}=[{value}]."
        is_one = container is list and isinstance(value, str)
        return _must_be(known.name, known.type_name, value) + (hint if is_one else "")
    return None


def _must_be(name: str, type_name: str, value: Any) -> str:
    of = "null" if value is None else type(value).__name__
    return f"`{name}` must be {type_name}, but is {value!r} ({of})."


def _wrong_value(merged: DictConfig, known: KnownKey, source: str) -> str | None:
    """What is wrong with a merged value: not set, a reference `${…}` to nothing, a value that is not allowed."""
    try:
        value = OmegaConf.select(merged, known.name, throw_on_missing=True)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        problem = _not_allowed(known, value)
    except MissingMandatoryValue:
        ways = f"Set it in the file or as {known.name}=… on the command line."
        return f"`{known.name}` is not set. {known.doc} {ways}"
    except OmegaConfBaseException as error:
        problem = f"`{known.name}`: {str(error).splitlines()[0]}."
    return problem and f"{source}: {problem}"


def _not_allowed(known: KnownKey, value: Any) -> str | None:
    """The first value that is of an old name, no choice or too small; in a dict, of another type."""
    name = known.name
    if isinstance(value, dict):
        element = typing.get_args(known.type)[1]
        wrong = [part for part in value if element is not Any and not isinstance(value[part], element)]
        return _must_be(f"{name}.{wrong[0]}", element.__name__, value[wrong[0]]) if wrong else None
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and (new := renamed.VALUES.get(name, {}).get(item)):
            return f"`{name}` is {item!r}, which was renamed to `{new}`."
        if known.choices and item not in known.choices:
            near = difflib.get_close_matches(str(item), known.choices, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            return f"`{name}` is {item!r}, but must be one of: {', '.join(known.choices)}.{hint}"
        if known.minimum is not None and item is not None and not item >= known.minimum:  # nor is NaN
            return f"`{name}` is {item!r}, but must be at least {known.minimum:g}."
    return None
