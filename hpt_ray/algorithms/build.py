"""From a name and overrides to an `Estimator`, or to a refusal that says why; and both in words.

Overrides are the keys of `AlgorithmConfig`; None leaves the algorithm's own choice. What cannot work is refused
here, before anything is started. `describe` prints what was chosen, `overview` the whole table of algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any

from hpt_ray.algorithms.advantages import ADVANTAGES
from hpt_ray.algorithms.base import Algorithm, Prefixes, Recipe, Stream, Term
from hpt_ray.algorithms.batch import Settings
from hpt_ray.algorithms.estimator import FAMILIES, Estimator, parts_of
from hpt_ray.algorithms.gates import GATES
from hpt_ray.algorithms.loss_aggregation import LOSS_AGGREGATIONS
from hpt_ray.algorithms.prefixes import PREFIX_RULES, Schedule
from hpt_ray.algorithms.table import ALGORITHMS
from hpt_ray.algorithms.token_parts import CORRECTIONS, KL_ESTIMATORS
from hpt_ray.config.schema import AlgorithmConfig
from hpt_ray.errors import UserError
from hpt_ray.utils.names import check_name

PREFIX: dict[Stream, str] = {"rollouts": "rollout", "demonstrations": "demo"}  # of configuration keys


def make_estimator(name: str, **overrides: Any) -> Estimator:
    """The named algorithm with single choices replaced.

    Example: `make_estimator("grpo", rollout_advantage="group_mean", clip_high=0.28)`.
    UserError: an unknown name or key (with the nearest ones), or a combination without sense.
    """
    known = {f.name: f for f in fields(AlgorithmConfig)}
    for option in overrides:
        check_name("algorithm.key", option, known)
    return estimator_from_config(AlgorithmConfig(name=name, **overrides))


def estimator_from_config(config: AlgorithmConfig) -> Estimator:
    """The same, from the `algorithm` section of a configuration."""
    algorithm = ALGORITHMS[ALGORITHMS.checked("algorithm.name", config.name)]
    recipe = algorithm.recipe(config.mode)
    _check_record(algorithm, recipe)
    terms = _replace_parts(algorithm, _branch_terms(algorithm, recipe, config), config)
    check_name("algorithm.kl_estimator", config.kl_estimator, KL_ESTIMATORS)
    check_name("algorithm.kl_in", config.kl_in, {"loss": None, "reward": None})
    CORRECTIONS.checked("algorithm.correction", config.correction)
    for term in terms:
        _check_term(algorithm, recipe, term)
    _check_whole(algorithm, terms, config)
    settings = Settings(
        clip_low=_own(config.clip_low, recipe.clip_low),
        clip_high=_own(config.clip_high, recipe.clip_high),
        length_constant=config.length_constant,
        shaping_gamma=_own(config.shaping_gamma, recipe.shaping_gamma),
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        correction_low=config.correction_low,
        correction_high=config.correction_high,
    )
    _check_numbers(settings)
    return Estimator(
        name=config.name,
        mode=config.mode,
        offline_branch=config.offline_branch or "sft",
        gate=algorithm.gate,
        terms=terms,
        settings=settings,
        entropy_coef=_own(config.entropy_coef, recipe.entropy_coef),
        entropy_aggregation=recipe.entropy_aggregation,
        kl_coef=config.kl_coef,
        kl_estimator=config.kl_estimator,
        kl_in=config.kl_in,
        correction=config.correction,
        demonstration_in_group=recipe.demonstration_in_group,
        prefixes=_prefixes(algorithm, config.prefix, recipe.prefixes),
        mu=_mu(algorithm, terms, config.mu, recipe.mu),
    )


def _mu(
    algorithm: Algorithm, terms: tuple[Term, ...], own: list[float], recipe: Schedule | None
) -> Schedule | None:
    """(first, last, number of steps) of μ; UserError for values or an algorithm that cannot have them."""
    if own and len({term.stream for term in terms}) < 2:
        raise UserError(
            f"algorithm.mu mixes rollouts and demonstrations, and {algorithm.name} has one of them; leave it out."
        )
    return _schedule("mu", own) if own else recipe


def _prefixes(algorithm: Algorithm, own: list[float], recipe: Prefixes | None) -> Prefixes | None:
    """The recipe's, with its schedule replaced; UserError for values or an algorithm that cannot have them."""
    if not own:
        return recipe
    if recipe is None or recipe.schedule is None:
        raise UserError(
            f"algorithm.prefix says how much of a demonstration rollouts continue, and {algorithm.name} has no such "
            "schedule; leave it out, or take prefix_rft or uft."
        )
    return replace(recipe, schedule=_schedule("prefix", own))


def _schedule(key: str, own: list[float]) -> Schedule:
    if len(own) not in (1, 3) or not all(0 <= value <= 1 for value in own[:2]):
        raise UserError(
            f"algorithm.{key}={own}: give one number from 0 to 1, or three: the first value, the last, and over how "
            "many steps it falls, such as [0.9, 0.05, 200]."
        )
    return (own[0], own[0], 0.0) if len(own) == 1 else (own[0], own[1], own[2])


def _own(override: float | None, recipe: float) -> float:
    return recipe if override is None else override


def _branch_terms(algorithm: Algorithm, recipe: Recipe, config: AlgorithmConfig) -> tuple[Term, ...]:
    if config.offline_branch is None:
        return recipe.terms
    if not recipe.offline:
        raise UserError(
            f"algorithm.offline_branch: {algorithm.name} has none; leave the key out, or use hpt."
        )
    check_name("algorithm.offline_branch", config.offline_branch, {"sft": None, **recipe.offline})
    return recipe.terms_of(config.offline_branch)


def _replace_parts(
    algorithm: Algorithm, terms: tuple[Term, ...], config: AlgorithmConfig
) -> tuple[Term, ...]:
    """Put in the parts that the configuration names, stream by stream, and multiply in ρ and λ."""
    result = []
    counts = {stream: sum(term.stream == stream for term in terms) for stream in PREFIX}
    for stream, prefix in PREFIX.items():
        named = {family: getattr(config, f"{prefix}_{family}") for family in FAMILIES}
        named = {family: part for family, part in named.items() if part is not None}
        for family, part in named.items():
            option = f"{prefix}_{family}"
            FAMILIES[family].checked(f"algorithm.{option}", part)
            if counts[stream] == 0:
                raise UserError(
                    f"algorithm.{option}: {algorithm.name} has no term on {stream}; leave the key out, or "
                    "take an algorithm with such a term (hpt has both)."
                )
            if counts[stream] > 1 and family not in ("loss_aggregation", "clip"):
                raise UserError(
                    f"algorithm.{option}: {algorithm.name} has {counts[stream]} terms on {stream}, and one "
                    f"{family} for all of them would make them the same; take another algorithm."
                )
        coef = getattr(config, f"{prefix}_coef")
        result += [replace(t, **named, coef=t.coef * coef) for t in terms if t.stream == stream]
    return tuple(result)


def _check_record(algorithm: Algorithm, recipe: Recipe) -> None:
    """A user's algorithm may name what is not there."""
    GATES.checked(f"gate of the algorithm {algorithm.name}", algorithm.gate)
    for term in (*recipe.terms, *chain(*recipe.offline.values())):
        for family, table in FAMILIES.items():
            table.checked(f"{family} of the algorithm {algorithm.name}", getattr(term, family))


def _check_term(algorithm: Algorithm, recipe: Recipe, term: Term) -> None:
    prefix, parts = PREFIX[term.stream], parts_of(term)
    for family, part in parts.items():
        if term.stream in part.not_for:
            raise UserError(
                f"algorithm.{prefix}_{family}={getattr(term, family)} makes no sense on {term.stream}: "
                f"{part.not_for[term.stream]}."
            )
    if "ratio" in parts["clip"].needs and not parts["denominator"].needs & {"old", "reference"}:
        raise UserError(
            f"algorithm.{prefix}_clip={term.clip} needs the ratio π_θ/π_old, but {prefix}_denominator="
            f"{term.denominator} has none ({parts['denominator'].formula}); use {prefix}_clip=none or, on "
            "rollouts, rollout_denominator=old or sequence."
        )
    if "prefixes" in parts["advantage"].needs and recipe.prefixes is None:
        raise UserError(
            f"algorithm.{prefix}_advantage={term.advantage} is that of a rollout that continues a prefix, and none of "
            f"{algorithm.name} does; use one or reward, or take prefix_rft."
        )
    if "union" in parts["advantage"].needs and not GATES[algorithm.gate].always_both:
        raise UserError(
            f"algorithm.{prefix}_advantage={term.advantage} compares rollouts with their demonstration, but "
            f"{algorithm.name} never trains both on one prompt (gate: {algorithm.gate}); use group_mean or "
            "group_std on rollouts, reward or one on demonstrations, or take luffy or srft."
        )
    if term.loss_aggregation.startswith("union") and not GATES[algorithm.gate].always_both:
        raise UserError(
            f"algorithm.{prefix}_loss_aggregation={term.loss_aggregation} counts both kinds of samples together, but "
            f"{algorithm.name} never trains both on one prompt; use seq-mean-token-sum-norm, "
            "seq-mean-token-mean or token-mean."
        )


def _check_whole(algorithm: Algorithm, terms: tuple[Term, ...], config: AlgorithmConfig) -> None:
    rollouts = [term for term in terms if term.stream == "rollouts"]
    if config.kl_coef and not rollouts:
        raise UserError(
            f"algorithm.kl_coef: KL(π_θ‖π_ref) is an average over the policy's own rollouts, and "
            f"{algorithm.name} has none; set kl_coef=0."
        )
    if config.kl_coef and any(ADVANTAGES[term.advantage].needs & {"teacher"} for term in rollouts):
        raise UserError(
            f"algorithm.kl_coef: {algorithm.name} already takes KL(π_θ‖π_frozen) as its advantage; set kl_coef=0."
        )
    if config.kl_coef and config.kl_in == "reward" and any(term.advantage == "continued" for term in terms):
        raise UserError(
            f"algorithm.kl_in=reward takes the KL off the rewards of rollouts, and {algorithm.name} also gives them to "
            "the prefixes that rollouts continue; set kl_in=loss."
        )
    if config.correction == "none":
        return
    if not rollouts:
        raise UserError(
            f"algorithm.correction={config.correction} re-weights rollouts, and {algorithm.name} trains on "
            "none; set correction=none."
        )
    for term in rollouts:
        if term.denominator == "sequence" or term.clip == "cispo":
            raise UserError(
                f"algorithm.correction={config.correction} would replace the weight that {algorithm.name} "
                "bounds in its own way (GSPO's s_i, CISPO's cap); set correction=none."
            )


def _check_numbers(settings: Settings) -> None:
    rules = {
        "length_constant must be above 0": settings.length_constant is None or settings.length_constant > 0,
        "shaping_gamma must be above 0": settings.shaping_gamma > 0,
        "discount must be in 0 … 1": 0 <= settings.discount <= 1,
        "gae_lambda must be in 0 … 1": 0 <= settings.gae_lambda <= 1,
        "clip_low and clip_high must be at least 0": settings.clip_low >= 0 and settings.clip_high >= 0,
        "correction_low must be above 0 and below correction_high": 0
        < settings.correction_low
        < settings.correction_high,
    }
    for rule, holds in rules.items():
        if not holds:
            raise UserError(f"algorithm: {rule}.")


# ---- in words ----------------------------------------------------------------------------------------


def describe(estimator: Estimator) -> str:
    """Readable text of several lines; formulas as in the tables, numbers as they are set."""
    algorithm = ALGORITHMS[estimator.name]
    lines = [
        f"{algorithm.name}: {algorithm.title}  (mode: {estimator.mode}"
        + (f", offline branch: {estimator.offline_branch})" if algorithm.default.offline else ")"),
        f"  source       {algorithm.source}",
        f"  data         {GATES[estimator.gate].data}",
        "  loss         Σ over terms of −Σ sg(c)·log π_θ / Z,  c = m · Â · s · π_θ/π_ref",
    ]
    for k, term in enumerate(estimator.terms, start=1):
        lines.append(f"  term {k} on {term.stream}, times {term.coef:g}{_by_mu(estimator, term)}")
        for family, part in parts_of(term).items():
            label = f"{family} {getattr(term, family)}"
            lines.append(f"    {label:<32} {part.formula}{_numbers(estimator, part.needs)}")
    if estimator.prefixes is not None:
        lines.append(f"  prefixes     {_of_prefixes(estimator.prefixes)}")
    lines += _additive_terms(estimator)
    if estimator.needs_all_samples:
        lines.append("  The backward pass waits for the last group: a Z or an advantage needs all samples.")
    return "\n".join(lines)


def _by_mu(estimator: Estimator, term: Term) -> str:
    if estimator.mu is None or term.stream == "rehearsal":
        return ""
    return f" · {'μ' if term.stream == 'demonstrations' else '(1 − μ)'}   [μ = {_in_words(estimator.mu)}]"


def _of_prefixes(prefixes: Prefixes) -> str:
    numbers = "" if prefixes.schedule is None else f"   [p = {_in_words(prefixes.schedule)}]"
    return PREFIX_RULES[prefixes.rule].doc + numbers


def _in_words(schedule: Schedule) -> str:
    first, last, steps = schedule
    return f"{first:g}" if first == last else f"{first:g} → {last:g} over {steps:g} steps, half a cosine"


def _numbers(estimator: Estimator, needs: frozenset[str]) -> str:
    s = estimator.settings
    constant = "max_response_tokens" if s.length_constant is None else f"{s.length_constant:g}"
    texts = {
        "clip": f"ε_low = {s.clip_low:g}, ε_high = {s.clip_high:g}",
        "length_constant": f"C = {constant}",
        "shaping_gamma": f"γ = {s.shaping_gamma:g}",
        "values": f"γ = {s.discount:g}, λ = {s.gae_lambda:g}",
    }
    used = [text for need, text in texts.items() if need in needs]
    return f"   [{', '.join(used)}]" if used else ""


def _additive_terms(estimator: Estimator) -> list[str]:
    lines = []
    if estimator.entropy_coef:
        z = estimator.entropy_aggregation
        rule = LOSS_AGGREGATIONS[z].formula if z else "Z of each stream's first term"
        lines.append(f"  entropy      −{estimator.entropy_coef:g} · Σ H_t / Z,  {rule}")
    if estimator.kl_coef:
        where = "Σ KL_t / Z of the first term on rollouts" if estimator.kl_in == "loss" else "from the reward"
        lines.append(f"  KL           {estimator.kl_coef:g} · {estimator.kl_estimator}, {where}")
    if estimator.correction != "none":
        s = estimator.settings
        lines.append(
            f"  correction   {CORRECTIONS[estimator.correction].formula}   "
            f"[low = {s.correction_low:g}, high = {s.correction_high:g}]"
        )
    return lines


def overview() -> str:
    """The table of algorithms in their default mode, a line for each term, laid out as in the paper's Table 1."""
    lines = [("algorithm", "on", "m", "π_ref", "Â", "s", "Z", "gate")]
    for algorithm in ALGORITHMS.values():
        for k, term in enumerate(algorithm.terms):
            first = (algorithm.name, algorithm.gate) if k == 0 else ("", "")
            parts = (term.clip, term.denominator, term.advantage, term.shaping, term.loss_aggregation)
            lines.append((first[0], PREFIX[term.stream], *parts, first[1]))
    return "\n".join(aligned(lines))


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Cells in columns, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
