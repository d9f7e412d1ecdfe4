"""Which checkpoints may be continued by which ranks."""

from pathlib import Path

import pytest

from hpt_ray.errors import UserError
from hpt_ray.learner.deepspeed_state import Layout


def test_a_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    Layout(num_ranks=3, zero_stage=2).write(tmp_path)
    assert Layout.read(tmp_path) == Layout(3, 2)


@pytest.mark.parametrize(
    ("saved", "now", "converted"),
    [
        ((2, 1), (2, 1), False),
        ((2, 1), (3, 1), True),
        ((2, 1), (2, 2), True),
        ((2, 2), (1, 1), True),
        ((2, 3), (1, 3), True),
        ((2, 0), (3, 0), False),  # every rank has everything
    ],
)
def test_another_number_of_ranks_needs_a_conversion(
    saved: tuple[int, int], now: tuple[int, int], converted: bool
) -> None:
    assert Layout(*now).needs_conversion(Layout(*saved), Path("state")) is converted


@pytest.mark.parametrize(("saved", "now"), [(1, 3), (3, 2), (0, 1), (3, 0)])
def test_stages_without_a_common_form_are_refused(saved: int, now: int) -> None:
    with pytest.raises(UserError, match=rf"written with ZeRO {saved}.*set learner.zero_stage={saved}"):
        Layout(2, now).needs_conversion(Layout(2, saved), Path("state"))
