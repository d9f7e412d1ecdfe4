"""Which methods are measured: rows of the table of algorithms, and rows with parts changed.

A method is written `NAME[,KEY=VALUE…]`: an algorithm with keys of the section `algorithm`, or `gate` and `gamma`, that
differ from it. The run's own algorithm keeps all keys of its configuration, others those of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import yaml

from hpt_ray.algorithms import ALGORITHMS, Estimator, estimator_from_config
from hpt_ray.algorithms.build import PREFIX
from hpt_ray.algorithms.estimator import FAMILIES
from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.schema import AlgorithmConfig, Config
from hpt_ray.driver.setup import check_algorithm
from hpt_ray.errors import UserError
from hpt_ray.tools.measure.gradients import Method
from hpt_ray.utils.names import check_name


def chosen(config: Config, named: Sequence[str], parts_of: str | None) -> dict[str, Method]:
    """The methods by name: those `named`, else the whole table, and `parts_of` with each of its parts switched.

    Raises `UserError` for one that makes no sense, or that needs more than the policy.
    """
    methods = {word: _method(config, word) for word in named}
    for name in {*(() if named or parts_of else ALGORITHMS)}:
        if (method := _possible(config, name)) is not None:
            methods[name] = method
    if parts_of is not None:
        methods[parts_of] = _method(config, parts_of)
        for word in _switched(parts_of, methods[parts_of].estimator):
            method = _possible(config, word)
            if method is not None and method != methods[parts_of]:
                methods[word] = method
    order = list(ALGORITHMS)
    return dict(sorted(methods.items(), key=lambda item: order.index(item[1].estimator.name)))


def _switched(name: str, estimator: Estimator) -> list[str]:
    """Every single change of a part of `name`, and of its gate."""
    streams = {term.stream for term in estimator.terms}
    parts = [
        f"{PREFIX[stream]}_{family}={part}"
        for stream in PREFIX
        if stream in streams
        for family, table in FAMILIES.items()
        for part in table
    ]
    gates = [f"gate={gate}" for gate in GATES] if len(streams) == 2 else []
    return [f"{name},{change}" for change in (*parts, *gates)]


def _possible(config: Config, word: str) -> Method | None:
    try:
        return _method(config, word)
    except UserError:
        return None


def _method(config: Config, word: str) -> Method:
    name, *changes = word.split(",")
    ALGORITHMS.checked("--method", name)
    own = config.algorithm if name == config.algorithm.name else AlgorithmConfig(name=name)
    algorithm = replace(own, length_constant=config.algorithm.length_constant)
    selection = replace(config.selection, gate=config.selection.gate if own is config.algorithm else "auto")
    known = {field.name: algorithm for field in fields(algorithm)}
    known |= dict.fromkeys(("gate", "gamma"), selection)  # type: ignore[arg-type]
    for change in changes:
        key, _, value = change.partition("=")
        check_name(f"--method {name}: key", key, known)
        if key in ("gate", "gamma"):
            selection = replace(selection, **{key: yaml.safe_load(value)})
        else:
            algorithm = replace(algorithm, **{key: yaml.safe_load(value)})
    estimator = estimator_from_config(algorithm)
    gate = estimator.gate if selection.gate == "auto" else GATES.checked("--method gate", selection.gate)
    check_algorithm(replace(config, algorithm=algorithm, selection=selection), estimator, gate)
    if estimator.needs_values or estimator.needs_reference:
        other = "critic" if estimator.needs_values else "frozen policy"
        raise UserError(f"--method {word}: its gradient needs a {other}, and the meter has the policy alone.")
    return Method(estimator, gate, selection.gamma, config.data.max_response_tokens)
