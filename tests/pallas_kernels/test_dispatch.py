"""Which implementation runs is asked of the mesh, said once, and never changed in silence."""

import ast
import logging
import pathlib

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import pallas_kernels
from pallas_kernels import UnsupportedError, dispatch


@pytest.mark.parametrize(
    ("platform", "family"), [("tpu", "tpu"), ("cuda", "gpu"), ("gpu", "gpu"), ("cpu", "cpu")]
)
def test_the_platform_is_that_of_the_mesh(platform, family):
    device = AbstractDevice("some device", 1, platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        assert dispatch.platform() == family


def test_without_a_mesh_the_platform_is_that_of_the_process():
    assert dispatch.platform() == "cpu"


def test_a_kernel_runs_elsewhere_only_when_it_is_interpreted():
    assert dispatch.platform_refusal("tpu") == "needs a TPU, and this runs on cpu"
    with dispatch.interpreted():
        assert dispatch.interprets()
        assert dispatch.platform_refusal("tpu") is None
        assert dispatch.platform() == "cpu"
    assert not dispatch.interprets()


def test_a_compiled_function_is_not_shared_between_interpreted_and_not():
    function = jax.jit(lambda x: x + 1 if dispatch.interprets() else x)
    assert function(1) == 1
    with dispatch.interpreted():
        assert function(1) == 2
    assert function(1) == 1


def test_a_choice_is_logged_once_and_a_name_is_not_a_choice(caplog):
    with caplog.at_level(logging.INFO, logger="pallas_kernels.dispatch"):
        for _ in range(3):
            assert dispatch.choose("an op of this test", None, ("a", "b"), "b") == "b"
        assert dispatch.choose("an op of this test", "a", ("a", "b"), "b") == "a"
    assert [r.getMessage() for r in caplog.records] == ["an op of this test runs 'b' on cpu"]


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(
        UnsupportedError, match="op has no implementation 'c'; it has a, b, or None"
    ):
        dispatch.choose("op", "c", ("a", "b"), "a")


def test_every_kernel_has_a_name_says_what_it_costs_and_can_be_interpreted():
    root = pathlib.Path(pallas_kernels.__file__).parent
    nodes = [node for file in root.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    calls = [
        {keyword.arg for keyword in node.keywords}
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("pallas_call")
    ]
    assert len(calls) >= 6
    for given in calls:
        assert given >= {"name", "cost_estimate", "interpret", "compiler_params"}
