"""Fingerprints of trees of arrays: one number per leaf, which any single flipped bit changes."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

LeafSpecs = dict[str, dict[str, Any]]
"""Path of a leaf to its `shape`, `dtype` and `fingerprint`, as JSON holds them."""

_SALT = np.uint32(0x9E3779B9)


def leaf_specs(tree: Any) -> LeafSpecs:
    """Specs of every leaf; the same on every mesh and number of processes."""
    shapes = leaf_shapes(tree)
    numbers = np.asarray(_fingerprints(list(_leaves(tree).values()))).tolist()
    return {
        path: {**shape, "fingerprint": number}
        for (path, shape), number in zip(shapes.items(), numbers, strict=True)
    }


def leaf_shapes(tree: Any) -> LeafSpecs:
    """Specs without the fingerprint; arrays may be abstract."""
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in _leaves(tree).items()
    }


def digest(value: Any) -> str:
    """Hash of anything JSON can hold, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first dozen of the keys that have another value or are missing on one side; empty where there is none."""
    changed = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    lines = [
        f"{key}: {saved.get(key, 'nothing')} saved, {now.get(key, 'nothing')} now"
        for key in changed[:12]
    ]
    return "; ".join(lines + [f"and {len(changed) - 12} more"] * (len(changed) > 12))


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def _fingerprints(leaves: list[Array]) -> UInt32[Array, "leaves"]:
    return jnp.stack([_fingerprint(leaf) for leaf in leaves])


def _fingerprint(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """sum_i (bits_i + salt) * odd(mixed(i)) mod 2^32, i the row-major index.

    An odd factor keeps every single changed bit visible; mixing the index keeps exchanged elements
    visible, which factors linear in i do not. Integer sums do not depend on the mesh.
    """
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    words = leaf if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, unsigned)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        rows_below = np.uint32(math.prod(leaf.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * rows_below
    return jnp.sum((words.astype(jnp.uint32) + _SALT) * (_mixed(index) | np.uint32(1)))


def _mixed(index: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The 32-bit finalizer of MurmurHash3: every input bit moves about half of the output bits."""
    index = (index ^ (index >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    index = (index ^ (index >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return index ^ (index >> np.uint32(16))
