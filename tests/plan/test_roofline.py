"""The roofline: the slowest of three, at the rates of the chip."""

import pytest

from hypenet_jax.chips import CHIPS
from hypenet_jax.model.cost import Flops
from hypenet_jax.plan.hlo import Collective
from hypenet_jax.plan.planning import CompiledProgram, roofline

H100 = CHIPS["h100"]
WITHIN = Collective("all-gather", 45e9, 2, ((0, 1), (2, 3)))
BETWEEN = Collective("all-reduce", 5e9, 3, ((0, 2), (1, 3)))
NODES = (0, 0, 1, 1)


def compiled(*collectives):
    return CompiledProgram(int(1e9), int(1e9), int(4e9), collectives, 1.0)


def test_flops_are_shared_by_the_devices_and_what_is_recomputed_counts():
    bound = roofline(Flops(3 * 4 * 989e12, 4 * 989e12), compiled(), H100, NODES)
    assert (bound.seconds, bound.bound) == (pytest.approx(4.0), "compute")


def test_arguments_are_read_and_outputs_written_once():
    bound = roofline(Flops(0.0), compiled(), H100, NODES)
    assert (bound.seconds, bound.bound) == (pytest.approx(2e9 / 3.35e12), "memory")


def test_what_leaves_a_node_goes_over_the_network():
    inside = roofline(Flops(0.0), compiled(WITHIN), H100, NODES)
    both = roofline(Flops(0.0), compiled(WITHIN, BETWEEN), H100, NODES)
    assert inside.links == pytest.approx(2 * 45e9 / 450e9)
    assert both.links == pytest.approx(inside.links + 3 * 5e9 / 50e9)
    assert both.bound == "links"
