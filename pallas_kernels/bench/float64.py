"""Ops and their gradients in float64, written out plainly: what the accuracy of a time is taken
from."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Floats = np.ndarray


def lightning(
    arrays: Sequence[Floats],
    cotangents: Sequence[Floats],
    log_decay: Floats,
    scale: float,
) -> tuple[Floats, Floats, tuple[Floats, Floats, Floats, Floats]]:
    """Outputs, last memory, and gradients of the arrays q, k, v and first memory.

    Tokens are [T, N, H] and states [N, H, H]; cotangents are of the outputs and the final state.

    m_t = decay m_(t-1) + k_t v_t^T ;  o_t = scale q_t m_t
    g_t = decay g_(t+1) + scale q_t do_t^T, from g_T = dm_T ;  dk_t = g_t v_t ;  dv_t = k_t g_t
    """
    doubles = (np.asarray(x, np.float64) for x in (*arrays, *cotangents))
    q, k, v, memory, d_out, gradient = doubles
    decay = np.exp(np.asarray(log_decay, np.float64))[:, None, None]
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (v, q, k, v))
    for t in range(len(q)):
        memory = decay * memory + k[t, :, :, None] * v[t, :, None, :]
        out[t] = scale * np.matmul(q[t, :, None, :], memory)[:, 0]
        d_q[t] = scale * np.matmul(memory, d_out[t, :, :, None])[..., 0]
    for t in reversed(range(len(q))):
        gradient = gradient + scale * q[t, :, :, None] * d_out[t, :, None, :]
        d_k[t] = np.matmul(gradient, v[t, :, :, None])[..., 0]
        d_v[t] = np.matmul(k[t, :, None, :], gradient)[:, 0]
        gradient = decay * gradient
    return out, memory, (d_q, d_k, d_v, gradient)


def value_and_gradients(
    function: Callable[..., Any], arrays: Sequence[Any], cotangent: Any
) -> tuple[Any, Any]:
    """A function of jax.numpy and its gradients for a cotangent of its output, on the CPU."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        doubles = [jnp.asarray(np.asarray(x, np.float64)) for x in (*arrays, cotangent)]

        def run(*doubles):
            out, pull_back = jax.vjp(function, *doubles[:-1])
            return out, pull_back(doubles[-1])

        return jax.tree.map(np.asarray, jax.jit(run)(*doubles))


def relative_error(got: Any, want: Floats) -> float:
    """Root mean square of the gap over that of what was wanted."""
    gap = np.asarray(got, np.float64) - want
    return float(np.sqrt(np.mean(gap**2)) / max(np.sqrt(np.mean(want**2)), 1e-300))
