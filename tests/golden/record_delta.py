"""Keeps of the official files of the delta mixers what the tests compare.

    python tests/golden/record_delta.py FOLDER

FOLDER holds `01-op-gated-delta-rule`, `02-op-kda`, `03-layer-gdn` and `04-layer-kda`. Of the ops the case with strong
decays is kept whole, and gate and convolution; of the layers inputs and weights whole, outputs and gradients thinned as
in `record.py`.
"""

import pathlib
import sys

import golden_recipe
import numpy as np
import record

OPS = {"01-op-gated-delta-rule": "gdn_op", "02-op-kda": "kda_op"}
LAYERS = {"03-layer-gdn": "gdn", "04-layer-kda": "kda"}
KEPT = ("strong_decay", "gate", "conv", "conv_with_cache")
WHOLE = ("x", "default.cot")


def main(folder: pathlib.Path) -> None:
    kept: dict[str, np.ndarray] = {}
    for where, name in OPS.items():
        cases = record.read(folder / where / "io.safetensors")
        kept |= {f"{name}/{key}": x for key, x in cases.items() if key.split(".")[0] in KEPT}
    for where, name in LAYERS.items():
        weights = record.read(folder / where / "weights.safetensors")
        kept |= {f"{name}/weights.{key}": x for key, x in weights.items()}
        for key, x in record.read(folder / where / "io.safetensors").items():
            kept[f"{name}/{key}"] = x if key in WHOLE else x[record.places(x.shape)]
    np.savez_compressed(golden_recipe.HERE / "delta.npz", **kept)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
