"""Gradients of kernels, which JAX cannot differentiate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def as_defined(kernel: Callable[..., Any], define: Callable[..., Any]) -> Callable[..., Any]:
    """kernel(plan, operands), which gives what define(plan, operands) gives, with the gradients of that.

    Traced and lowered once for layers alike: a kernel takes 50 ms of each.
    """

    def backward(plan: Any, cotangents: Any, operands: Any) -> tuple[Any]:
        return jax.vjp(lambda operands: define(plan, operands), operands)[1](cotangents)

    return jax.jit(as_given(kernel, backward), static_argnums=0)


def as_given(kernel: Callable[..., Any], gradients: Callable[..., Any]) -> Callable[..., Any]:
    """kernel(plan, *arrays), whose gradients are gradients(plan, cotangents, *arrays)."""

    def forward(plan: Any, *arrays: Any) -> tuple[Any, Any]:
        return kernel(plan, *arrays), arrays

    def backward(plan: Any, arrays: Any, cotangents: Any) -> Any:
        return gradients(plan, cotangents, *arrays)

    differentiable: Any = jax.custom_vjp(kernel, nondiff_argnums=(0,))
    differentiable.defvjp(forward, backward)
    return differentiable


def of_scaled(call: Callable[..., Any], forward: Any, backward: Any) -> Callable[..., Any]:
    """f(plan, x, scale, turns) of two kernels, differentiable by x and scale.

    call(plan, forward, (x,), scale, turns) gives (f,); call(plan, backward, (cotangent, x), scale, turns) gives the
    gradient of x, and of the scale [..., H] what each block of x adds to it.
    """

    def kernel(plan: Any, x: Any, scale: Any, turns: Any) -> Any:
        return call(plan, forward, (x,), scale, turns)[0]

    def gradients(plan: Any, cotangent: Any, x: Any, scale: Any, turns: Any) -> Any:
        d_x, d_scale = call(plan, backward, (cotangent, x), scale, turns)
        return d_x, jnp.sum(d_scale, axis=tuple(range(d_scale.ndim - 1))), None

    return as_given(kernel, gradients)
