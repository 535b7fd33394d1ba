"""The golden cases as fixtures: models through their Hugging Face folders, and one comparison for all numbers.

HYPENET_GOLDEN=FOLDER compares with the official files themselves (their weights too) instead of the thinned ones, and
prints the largest difference of each kind: `HYPENET_GOLDEN=... pytest tests/golden -s`.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator

import golden_recipe
import jax.numpy as jnp
import numpy as np
import pytest
import record

from hypenet_jax.axes import Params
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.weights.safetensors import load_hf


class Golden:
    """Recorded outputs by "case/name", and the largest difference seen for each."""

    def __init__(self, folder: pathlib.Path | None) -> None:
        self.folder = folder
        self.gaps: dict[str, float] = {}
        if folder is None:
            with np.load(golden_recipe.HERE / "outputs.npz") as file:
                self.outputs = dict(file)
            return
        self.outputs = {
            f"{case}/{name}": value
            for case, where in record.CASES.items()
            for name, value in record.read(folder / where / "io.safetensors").items()
        }
        norms = json.loads((folder / record.CASES["alignment"] / "grad_norms.json").read_text())
        self.outputs |= {f"alignment/grad_norm.{name}": np.float32(x) for name, x in norms.items()}

    def close(self, name: str, ours: object, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Asserts |ours - recorded| <= atol + rtol * (largest recorded number) everywhere."""
        ours, recorded = np.asarray(ours), self.outputs[name]
        if self.folder is None:
            ours = ours[record.places(ours.shape)]
        assert ours.shape == recorded.shape, name
        gap = float(np.abs(ours - recorded).max())
        size = float(np.abs(recorded).max())
        self.gaps[name] = gap / size if rtol else gap
        assert gap <= atol + rtol * size, f"{name} differs by {gap:.2e}, its size is {size:.2e}"


@pytest.fixture(scope="session")
def golden() -> Iterator[Golden]:
    folder = os.environ.get("HYPENET_GOLDEN")
    numbers = Golden(None if folder is None else pathlib.Path(folder))
    yield numbers
    worst: dict[str, float] = {}
    for name, gap in numbers.gaps.items():
        kind = name.split("layer_")[0]
        worst[kind] = max(gap, worst.get(kind, 0.0))
    print("", *(f"{kind:40} {gap:.1e}" for kind, gap in sorted(worst.items())), sep="\n")


@pytest.fixture(scope="session")
def load(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Decoder, Params]]:
    """A golden model by name, read once as `load_hf` reads any checkpoint."""
    loaded: dict[str, tuple[Decoder, Params]] = {}

    def get(model: str) -> tuple[Decoder, Params]:
        if model not in loaded:
            if golden.folder is None:
                folder = golden_recipe.write_checkpoint(model, tmp_path_factory.mktemp(model))
            else:
                folder = golden.folder / record.MODELS[model]
            loaded[model] = load_hf(folder, dtype=jnp.float32)
        return loaded[model]

    return get
