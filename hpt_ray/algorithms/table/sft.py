"""Supervised fine-tuning on demonstrations, as a policy gradient with Â = 1 and π_ref = π_θ."""

from hpt_ray.algorithms.base import Algorithm, Recipe, Term

_NLL = Term("demonstrations", advantage="one", denominator="current")


def nll(loss_aggregation: str, coef: float = 1.0) -> Term:
    """−log π_θ of the demonstrations' tokens."""
    return Term(_NLL.stream, _NLL.advantage, _NLL.denominator, loss_aggregation=loss_aggregation, coef=coef)


SFT = Algorithm(
    name="sft",
    title="supervised fine-tuning",
    formula="−(1/N) Σ_demos (1/L) Σ_t log π_θ(τ*_t)",
    source="arXiv 2509.04419, Eq 12 (default), Eq 14 without length division (paper)",
    gate="demonstrations",
    default=Recipe((nll("seq-mean-token-mean"),)),
    paper=Recipe((nll("seq-mean-token-sum"),)),
    official=Recipe(
        (nll("official-micro-batch-mean"),),
        entropy_coef=0.001,
        entropy_aggregation="official-micro-batch-mean",
    ),
)
