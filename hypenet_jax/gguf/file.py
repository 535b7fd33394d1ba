"""What a GGUF file holds: metadata by key, and tensors that are dequantized one at a time.

The package `gguf`, llama.cpp's own, reads and dequantizes.
"""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from hypenet_jax.weights import CheckpointError


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor where it lies in the file.

    Attributes:
      kind: ggml's name of its type: "F32", "BF16", "Q4_K".
      shape: of the numbers, as PyTorch writes it: outputs first.
      data: the bytes or numbers as they are stored, mapped and not read.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray

    def read(self) -> Float[np.ndarray, "..."]:
        """The numbers, float32: every type but F64 is exact in it.

        Raises:
          CheckpointError: a type that the package cannot dequantize, or numbers that are not finite.
        """
        gguf = package()
        try:
            with np.errstate(all="ignore"):  # what overflows is found below
                values = gguf.dequantize(self.data, gguf.GGMLQuantizationType[self.kind])
        except NotImplementedError:
            raise CheckpointError(f"{self.name} is {self.kind}, which cannot be read") from None
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.name} holds numbers that are not finite: a damaged file?")
        return values.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A GGUF file; `metadata` and `tensors` by their names in it."""

    path: pathlib.Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the metadata.

        Raises:
          CheckpointError: it is absent and there is no default, or it is not of this kind.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise CheckpointError(f"{key} is missing")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise CheckpointError(f"{key} must be {kind.__name__}, got {value!r:.80}")
        return value


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads the header of a file and all metadata.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is no GGUF file, damaged, cut off, of the other byte order, or not a whole model.
      ValueError: the package `gguf` is not installed.
    """
    path, gguf = pathlib.Path(path), package()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: _stored(tensor) for tensor in reader.tensors}
    except Exception as error:  # where a file ends too early, the package raises whatever comes
        raise CheckpointError(f"{path} is no whole GGUF file ({error})") from error
    if reader.byte_order != "I":
        raise CheckpointError(f"{path} has the byte order of another machine; convert it there")
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise CheckpointError(
            f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge`"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise CheckpointError(f"{path} holds no model: its general.type is {kind!r}")
    return GGUFFile(path, metadata, tensors)


def _stored(tensor: Any) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(tensor.name, tensor.tensor_type.name, shape, tensor.data)


def package() -> Any:
    """The package `gguf`; ValueError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ValueError(
            "reading GGUF files needs the package gguf: pip install 'hypenet-jax[gguf]'"
        ) from None
