"""Names that the schema leaves open: refused by the tables that have them, and all of them documented."""

import pytest

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.load import known_keys, load_config
from hpt_ray.driver.setup import BACKENDS, check_choices, check_names
from hpt_ray.errors import UserError
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS
from hpt_ray.reward.terms import TERMS

GOOD = ("model.path=m", "data.train=[a.parquet]")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "selection.gate=swich",
            f"`selection.gate` is 'swich', but must be one of: auto, {', '.join(GATES)}. Did you mean `switch`?",
        ),
        (
            "weight_sync.backend=ncl",
            "`weight_sync.backend` is 'ncl', but must be one of: auto, gloo, nccl. Did you mean `nccl`?",
        ),
        (
            "observe.trackers=[wandb, wanbd]",
            "`observe.trackers` is 'wanbd', but must be one of: tensorboard, prometheus, wandb, mlflow, trackio. "
            "Did you mean `wandb`?",
        ),
        ("phases=[{steps: 1}, {steps: 1, selection: {gate: bothh}}]", "`selection.gate` is 'bothh'"),
    ],
)
def test_a_name_without_an_entry_is_refused(word: str, message: str) -> None:
    config = load_config(None, [*GOOD, word])
    for check in (check_names, check_choices):
        with pytest.raises(UserError) as caught:
            check(config)
        assert message in str(caught.value)


@pytest.mark.parametrize("word", ["observe.trackers=[tensorboard, mlflow]", "selection.gate=linear"])
def test_a_name_of_a_table_passes(word: str) -> None:
    check_names(load_config(None, [*GOOD, word]))


def test_all_reasons_against_an_algorithm_are_told_at_once() -> None:
    config = load_config(None, [*GOOD, "algorithm.name=ppo", "group_size=0", "critic.num_gpus=2"])
    with pytest.raises(UserError) as caught:
        check_choices(config)
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "algorithm.name=ppo",
        "critic.num_gpus",
    ]


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("selection.gate", GATES),
        ("weight_sync.backend", BACKENDS),
        ("observe.trackers", TRACKERS),
        ("reward.function", REWARD_FUNCTIONS),
        ("reward.terms", TERMS),
    ],
)
def test_the_schema_documents_every_name(key: str, table: dict[str, object]) -> None:
    doc = known_keys()[key].doc
    for name in table:
        assert f"`{name}`" in doc or f"`{name}:" in doc, name
