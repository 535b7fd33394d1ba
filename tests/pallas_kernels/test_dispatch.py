"""Which implementation runs is asked of the mesh, said once, and never changed in silence."""

import ast
import importlib
import inspect
import logging
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import pallas_kernels
from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.bench.rotary import NORM_ROTARY

# Op: its folder, and the table there of its implementations.
TABLES = {
    "attention": ("attention", "IMPLEMENTATIONS"),
    "decode_attention": ("decode_attention", "IMPLEMENTATIONS"),
    "gated_delta_rule": ("gated_delta_rule", "IMPLEMENTATIONS"),
    "lightning_attention": ("lightning_attention", "IMPLEMENTATIONS"),
    "lightning_step": ("lightning_step", "IMPLEMENTATIONS"),
    "linear_cross_entropy": ("linear_loss", "CROSS_ENTROPY"),
    "linear_distillation": ("linear_loss", "DISTILLATION"),
    "linear_kl": ("linear_loss", "KL"),
    "linear_kl_top_k": ("linear_loss", "KL_TOP_K"),
    "norm_rotary": ("norm_rotary", "IMPLEMENTATIONS"),
    "projection": ("projection", "IMPLEMENTATIONS"),
}


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
    assert dispatch.platform_unsupported_reason("tpu") == "needs a TPU, and this runs on cpu"
    with dispatch.interpreted():
        assert dispatch.interprets()
        assert dispatch.platform_unsupported_reason("tpu") is None
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


@pytest.mark.parametrize("op", TABLES)
def test_an_op_has_one_list_of_implementations_all_in_its_folder(op):
    folder, name = TABLES[op]
    module = importlib.import_module(f"pallas_kernels.{folder}")
    table, names = getattr(module, name), typing.get_args(module.Implementation)
    assert set(table) <= set(names)
    assert name != "IMPLEMENTATIONS" or tuple(table) == names
    functions = [getattr(f, "func", f) for f in table.values()]  # of what is partial
    assert all(f.__module__.startswith(f"{module.__name__}.") for f in functions)
    parameters = inspect.signature(getattr(pallas_kernels, op)).parameters
    assert parameters["implementation"].annotation == module.Implementation | None
    assert parameters["implementation"].default is None


def test_all_ops_are_known_here_and_say_alike_what_shards_them():
    functions = {name: getattr(pallas_kernels, name) for name in pallas_kernels.__all__}
    signatures = {n: inspect.signature(f) for n, f in functions.items() if inspect.isfunction(f)}
    ops = {name for name, s in signatures.items() if "implementation" in s.parameters}
    assert ops == set(TABLES)
    on_a_mesh = {op for op in ops if "mesh_axes" in signatures[op].parameters}
    assert on_a_mesh == ops - {"projection"}


def test_a_new_implementation_is_a_function_and_its_name(monkeypatch):
    """The op runs it, the error of an unknown name lists it, and the benchmark times it."""
    module = importlib.import_module("pallas_kernels.norm_rotary")
    reference = module.IMPLEMENTATIONS["reference"]
    new = lambda operands, *, eps: reference(operands, eps=eps)  # noqa: E731
    monkeypatch.setitem(module.IMPLEMENTATIONS, "new", new)
    op = inspect.unwrap(module.norm_rotary)  # past the check of its types, which name the others
    arrays = jnp.ones((1, 2, 3, 4)), jnp.ones(4), jnp.ones((1, 2, 2))
    np.testing.assert_array_equal(
        op(*arrays, eps=1e-6, implementation="new"), op(*arrays, eps=1e-6)
    )
    with pytest.raises(UnsupportedError, match="it has reference, permuted, tpu, gpu, new, or"):
        op(*arrays, eps=1e-6, implementation="other")
    assert all("new" in case.implementations for case in NORM_ROTARY.cases())
