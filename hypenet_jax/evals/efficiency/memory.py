"""What a model holds at a context length: its state, by its arrays and by formula, and the peak while it runs."""

import functools

import jax
import jax.numpy as jnp

from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Row
from hypenet_jax.generation.decode import decode_until, init_carry, row_keys
from hypenet_jax.generation.prefill import PREFILL_PART, prefill_part, start_context
from hypenet_jax.generation.sampling import GREEDY
from hypenet_jax.model.cost import state_bytes
from hypenet_jax.model.decoder import Decoder, decode_state


def bytes_rows(model: EvalModel, length: int) -> tuple[Row, Row]:
    """What one row's state takes at a context of `length`: its arrays added up, and by formula."""
    config, dtype = model.decoder.config, model.decoder.dtype
    state = jax.eval_shape(lambda: decode_state(config, 1, length, dtype))
    measured = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    formula = state_bytes(config, length, dtype)
    return (
        Row("state_bytes", model.name, float(measured), 1, length),
        Row("state_bytes_formula", model.name, float(formula), 1, length),
    )


def peak_rows(model: EvalModel, length: int, *, new_tokens: int) -> tuple[Row, Row]:
    """Most bytes a device holds while it reads a context of `length`, and while it writes into it.

    Parameters, state, results and what the compiler sets aside between them, by its own account.
    """
    decoder, params = model.decoder, model.params
    assert isinstance(decoder, Decoder)
    context = jax.eval_shape(functools.partial(start_context, decoder, 1, length))
    tokens = jax.ShapeDtypeStruct((1, min(length, PREFILL_PART)), jnp.int32)
    start = jax.eval_shape(lambda c: init_carry(c, new_tokens, ()), context)
    keys = jax.eval_shape(lambda: row_keys(None, 1))
    programs = {
        "prefill": prefill_part.lower(decoder, params, context, tokens, None),
        "decode": decode_until.lower(decoder, params, start, keys, new_tokens, GREEDY, ()),
    }
    first, second = (
        Row(f"{name}_peak_bytes", model.name, _peak_bytes(program.compile()), 1, length)
        for name, program in programs.items()
    )
    return first, second


def _peak_bytes(program: jax.stages.Compiled) -> float:
    held = program.memory_analysis()
    assert held is not None  # every backend of XLA tells
    given = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    return float(given + held.temp_size_in_bytes)
