"""The weights in a GGUF file in our axes, dequantized one by one."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hypenet_jax.axes import Params
from hypenet_jax.gguf.fields import ROPE_DIVISORS, architecture
from hypenet_jax.gguf.file import GGUFFile, StoredTensor, package
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.weights.hf_config import refuse_inexact
from hypenet_jax.weights.names import Tensor, nest, shape_problems, tensors, to_ours

ROTARY = (".attn_q.", ".attn_k.")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is read whenever it becomes an array, so that no two need to be in memory at once.

    Attributes:
      neighbor_heads: how many heads its rows belong to whose neighbours rotate together; 0: none do.
    """

    tensor: Tensor
    stored: StoredTensor
    neighbor_heads: int
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.our_shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.stored.read()
        if self.neighbor_heads:
            values = rotary_halves(values, self.neighbor_heads)
        return to_ours(values, self.shape, self.tensor.groups).astype(dtype or self.dtype)


def parameters(file: GGUFFile, config: ModelConfig) -> Params:
    """The parameters of `config`, each a `Leaf`; a CheckpointError lists missing, unexpected and misshapen tensors."""
    name, known = architecture(file)
    their_name = _names(name, config.num_layers)
    wanted = {their_name(tensor.theirs): tensor for tensor in tensors(config)}
    found = {key: stored.shape for key, stored in file.tensors.items() if key != ROPE_DIVISORS}
    shapes = {key: tensor.their_shape for key, tensor in wanted.items()}
    refuse_inexact(shape_problems(found, shapes))
    leaves = {}
    for key, tensor in wanted.items():
        turned = known.rotates_neighbors and any(part in key for part in ROTARY)
        leaves[tensor.ours] = Leaf(tensor, file.tensors[key], tensor.our_shape[-2] if turned else 0)
    return nest(leaves)


def rotary_halves(rows: Float[np.ndarray, "O ..."], heads: int) -> Float[np.ndarray, "O ..."]:
    """Rows of heads whose neighbours rotate together, put so that row j rotates with row j + H/2."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def kept_dtype(file: GGUFFile) -> Literal["bfloat16", "float32"]:
    """The type that loses nothing: "bfloat16" where all matrices are and it holds every vector, else "float32"."""
    for name, stored in file.tensors.items():
        vector = stored.kind == "F32" and len(stored.shape) == 1
        if name == ROPE_DIVISORS or stored.kind == "BF16":
            continue
        if not (vector and _is_bfloat16(stored.read())):
            return "float32"
    return "bfloat16"


def _is_bfloat16(values: Float[np.ndarray, "..."]) -> bool:
    return not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any()


def _names(architecture_name: str, layers: int) -> Callable[[str], str]:
    """From names in Hugging Face folders to those in GGUF files, by the package's own table."""
    gguf = package()
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture_name]
    names = gguf.get_tensor_name_map(number, layers)
    return lambda name: names.get_name(name, (".weight", ".bias"))
