"""Where copies in memory are kept."""

from __future__ import annotations

import pytest

from hpt_ray.checkpoint.replicas import StateReplica, homes_of


@pytest.mark.parametrize(
    ("nodes", "others", "homes"),
    [
        (["a", "a"], ["a"], [["a"], ["a"]]),  # one node: against a process that ends
        (["a", "a"], ["c", "a", "b"], [["a", "c"], ["a", "c"]]),
        (["a", "b"], ["a", "b", "c"], [["a", "b"], ["b", "a"]]),
        (["b", "b", "a", "c"], ["a", "b", "c"], [["b", "a"], ["b", "a"], ["a", "c"], ["c", "b"]]),
    ],
)
def test_a_rank_has_a_copy_on_its_node_and_on_another(nodes, others, homes):
    assert homes_of(nodes, others) == homes


@pytest.mark.parametrize("lost", ["a", "b", "c"])
def test_whatever_node_is_lost_every_part_is_somewhere(lost):
    for homes in (homes_of(["a", "a", "b", "c"], []), homes_of(["a"], ["b", "c"])):
        assert all(set(mine) - {lost} for mine in homes)


def test_a_replica_keeps_one_step_and_what_is_coming():
    replica = StateReplica()
    for step in (1, 2):
        replica.put(step, "random", {"step": step})
    assert (replica.has(1), replica.has(2), replica.has(3)) == (True, True, False)
    replica.keep(2)
    assert (replica.has(1), replica.has(2)) == (False, True)
    assert replica.get(2, "random") == {"step": 2}
