"""The learning rate is a function of the update's number alone."""

from __future__ import annotations

import itertools

import pytest

from hpt_ray.config.training import LearnerConfig
from hpt_ray.learner.schedule import learning_rate


def rates(n: int, **settings) -> list[float]:
    config = LearnerConfig(learning_rate=1.0, **settings)
    return [learning_rate(config, update, n) for update in range(n)]


def test_warm_up_reaches_the_peak_at_its_last_update() -> None:
    assert rates(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_end_at_the_ratio(schedule: str) -> None:
    values = rates(11, warmup_steps=1, schedule=schedule, min_lr_ratio=0.1)
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_linear_is_a_line_and_cosine_is_half_way_in_the_middle() -> None:
    assert rates(5, schedule="linear", min_lr_ratio=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(5, schedule="cosine", min_lr_ratio=0.0)[2] == pytest.approx(0.5)
