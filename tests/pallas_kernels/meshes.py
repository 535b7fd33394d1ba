"""Meshes of virtual devices that cut rows, the sequence and heads."""

import jax
import numpy as np
from jax.sharding import AxisType

AXES = {"batch": "data", "sequence": "sequence", "heads": "tensor"}


def mesh_of(data, sequence, tensor=1):
    sizes = (data, sequence, tensor)
    devices = jax.devices()[: np.prod(sizes)]
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, tuple(AXES.values()), axis_types=kinds, devices=devices)
