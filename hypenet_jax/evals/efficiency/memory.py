"""What a model holds at a context length: its state, by its arrays and by formula, and the peak while it runs."""

import functools

import jax
import jax.numpy as jnp

from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.generation.decode import GREEDY, decode_until, init_carry, row_keys
from hypenet_jax.generation.prefill import PREFILL_PART, prefill_part, start_context
from hypenet_jax.model.cost import state_bytes
from hypenet_jax.model.decoder import Decoder


def memory_rows(model: EvalModel, length: int, *, new_tokens: int) -> Report:
    """Bytes of one row's state, and the most that a device holds while it reads `length` tokens, or writes the last.

    The peaks are parameters, state, results and what the compiler sets aside between them, by its own account.
    """
    decoder, params = model.decoder, model.params
    assert isinstance(decoder, Decoder)
    context = jax.eval_shape(functools.partial(start_context, decoder, 1, length))
    tokens = jax.ShapeDtypeStruct((1, min(length, PREFILL_PART)), jnp.int32)
    start = jax.eval_shape(lambda c: init_carry(c, new_tokens, ()), context)
    keys = jax.eval_shape(lambda: row_keys(None, 1))
    prefill = prefill_part.lower(decoder, params, context, tokens, None)
    decode = decode_until.lower(decoder, params, start, keys, new_tokens, GREEDY, ())
    leaves = jax.tree.leaves(context.state)
    numbers = {
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "state_bytes_formula": state_bytes(decoder.config, length, decoder.dtype),
        "prefill_peak_bytes": _peak_bytes(prefill.compile()),
        "decode_peak_bytes": _peak_bytes(decode.compile()),
    }
    rows = (Row(name, model.name, float(bytes_), 1, length) for name, bytes_ in numbers.items())
    return Report(tuple(rows))


def _peak_bytes(program: jax.stages.Compiled) -> int:
    held = program.memory_analysis()
    assert held is not None  # every backend of XLA tells
    given = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    return given + held.temp_size_in_bytes
