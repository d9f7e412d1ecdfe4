"""The schema cannot ask the tables above it, so that it documents every name of theirs is held here."""

import pytest

from hpt_ray.algorithms.gates import GATES
from hpt_ray.config.load import known_keys
from hpt_ray.observe.trackers import TRACKERS
from hpt_ray.reward.functions.table import REWARD_FUNCTIONS
from hpt_ray.reward.service import TERMS
from hpt_ray.weight_sync.backends import BACKENDS


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
