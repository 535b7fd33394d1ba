"""Names of topologies, and how they grow."""

import jax
import pytest

from hypenet_jax.plan.topology import TopologyError, here, parse


@pytest.mark.parametrize(
    ("name", "count", "larger"),
    [
        ("v5e:1x1", 1, "v5e:2x2"),
        ("v5e:4x4", 16, "v5e:4x8"),
        ("v5p:2x2x1", 4, "v5p:2x2x2"),
        ("v5p:2x4x4", 32, "v5p:4x4x4"),
        ("h100:8", 8, "h100:2x8"),
        ("h200:4x8", 32, "h200:8x8"),
    ],
)
def test_a_name_says_the_chip_and_how_many(name, count, larger):
    topology = parse(name)
    assert (topology.chip.name, topology.count) == (name.split(":")[0], count)
    assert topology.larger().name == larger
    assert topology.larger().chip == topology.chip


@pytest.mark.parametrize("name", ["v5p", "v9:2x2", "v4:2x2x1", "h100:8x", "h100:1x2x3", ""])
def test_another_name_is_refused_and_says_what_would_work(name):
    with pytest.raises(TopologyError, match=r"v5p:2x4x4|NODESxGPUS"):
        parse(name)


def test_devices_of_this_machine_are_all_or_some_but_no_more():
    assert here(None).devices() == jax.devices()
    assert here(2).devices() == jax.devices()[:2]
    with pytest.raises(TopologyError, match="this machine has 8"):
        here(9).devices()
