"""Ops and their gradients in float64, written out plainly: what the accuracy of a time is taken
from."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Floats = np.ndarray


def lightning(
    q: Floats, k: Floats, v: Floats, d_out: Floats, log_decay: Floats, scale: float
) -> tuple[Floats, Floats, tuple[Floats, Floats, Floats]]:
    """Outputs, last memory, and gradients of q, k, v for the cotangent d_out; all [T, N, H].

    m_t = decay m_(t-1) + k_t v_t^T ;  o_t = scale q_t m_t
    g_t = decay g_(t+1) + scale q_t do_t^T ;  dk_t = g_t v_t ;  dv_t = k_t g_t
    """
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    decay = np.exp(np.asarray(log_decay, np.float64))[:, None, None]
    memory = np.zeros((*q.shape[1:], v.shape[2]))
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (v, q, k, v))
    for t in range(len(q)):
        memory = decay * memory + k[t, :, :, None] * v[t, :, None, :]
        out[t] = scale * np.matmul(q[t, :, None, :], memory)[:, 0]
        d_q[t] = scale * np.matmul(memory, d_out[t, :, :, None])[..., 0]
    gradient = np.zeros_like(memory)
    for t in reversed(range(len(q))):
        gradient = decay * gradient + scale * q[t, :, :, None] * d_out[t, :, None, :]
        d_k[t] = np.matmul(gradient, v[t, :, :, None])[..., 0]
        d_v[t] = np.matmul(k[t, :, None, :], gradient)[:, 0]
    return out, memory, (d_q, d_k, d_v)


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
