"""Meshes of virtual devices that cut rows, the sequence and heads, and of devices that are not there."""

import jax
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels import MeshAxes

CALL = {"cuda": "stablehlo.custom_call @__gpu$xla.gpu.triton(", "tpu": "tpu_custom_call"}
KIND = {"cuda": "NVIDIA H200", "tpu": "TPU v5 lite"}
NAMES = "data", "sequence", "tensor"
AXES = MeshAxes(batch=("data",), sequence=("sequence",), heads=("tensor",))


def mesh_of(data, sequence, tensor=1):
    sizes = (data, sequence, tensor)
    devices = jax.devices()[: np.prod(sizes)]
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, NAMES, axis_types=kinds, devices=devices)


def on(kind="NVIDIA H200", platform="cuda", **axes):
    """Inside, programs are made for a device of that kind, or a mesh of several."""
    device = AbstractDevice(kind, 1, platform)
    kinds = (AxisType.Auto,) * len(axes)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), kinds, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def on_platform(platform, kind=None, **axes):
    """As `on`, of a kind that kernels of that platform run on."""
    return on(kind or KIND[platform], platform, **axes)
