"""Thins the official files to what the tests compare; checks that `golden_recipe.py` gives their weights and inputs.

    python tests/golden/record.py FOLDER

FOLDER holds `01-qwen3-tied`, `03-hypenet-mixed`, `06-incremental-decoding`, `07-stage1-alignment`, `08-stage2-kl` and
`layer_selection_2b.json`. Every output tensor is kept at every STRIDE-th place of its longest axes and at the last one,
in float32 as it came; README.md says where the files are from.
"""

import json
import pathlib
import shutil
import sys

import golden_recipe as recipe
import numpy as np
import safetensors

STRIDE = 8
CASES = {
    "qwen3": "01-qwen3-tied",
    "hypenet": "03-hypenet-mixed",
    "decoding": "06-incremental-decoding",
    "alignment": "07-stage1-alignment",
    "kl": "08-stage2-kl",
}
MODELS = {
    "qwen3": "01-qwen3-tied",
    "hypenet": "03-hypenet-mixed",
    "teacher": "07-stage1-alignment/teacher",
}
INPUTS = ("input_ids", "position_ids", "labels", "student_logits", "teacher_logits")


def main(folder: pathlib.Path) -> None:
    for model, name in MODELS.items():
        target = recipe.config_file(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name / "config.json", target)
        agree(name, recipe.checkpoint(model), read(folder / name / "model.safetensors"))
    kept = {}
    for case, name in CASES.items():
        official = read(folder / name / "io.safetensors")
        check_inputs(case, official)
        kept |= {f"{case}/{key}": value for key, value in thinned(official).items()}
    norms = json.loads((folder / CASES["alignment"] / "grad_norms.json").read_text())
    kept |= {f"alignment/grad_norm.{key}": np.float32(value) for key, value in norms.items()}
    np.savez_compressed(recipe.HERE / "outputs.npz", **kept)
    scores = json.loads((folder / "layer_selection_2b.json").read_text())
    (recipe.HERE / "layer_selection_2b.json").write_text(
        json.dumps(scores, separators=(",", ":")) + "\n"
    )


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a file that numpy has a type for."""
    with safetensors.safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if file.get_slice(name).get_dtype() != "BF16"]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def thinned(official: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs alone, each thinned by `places`."""
    return {
        name: value[places(value.shape)] if value.dtype == np.float32 else value
        for name, value in official.items()
        if name not in INPUTS and not is_new_weight(name)
    }


def is_new_weight(name: str) -> bool:
    return name.startswith("student_init") and ("z_proj" in name or "o_norm" in name)


def places(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices of what is kept: everything small, and every STRIDE-th entry of the time (or row) axis and the last.

    Vectors, states and short axes stay whole; of [.., T, W] the axis T is thinned, whatever its name.
    """
    axes = [np.arange(size) for size in shape]
    if len(shape) >= 2 and shape[-2] > 2 * STRIDE:
        size = shape[-2]
        axes[-2] = np.unique([*range(0, size, STRIDE), size - 1])
    return np.ix_(*axes) if axes else ()


def check_inputs(case: str, official: dict[str, np.ndarray]) -> None:
    if case in recipe.INPUTS:
        agree(case, {"input_ids": recipe.tokens(case)}, official)
    if "labels" in official:
        text, counted = recipe.labels(case)
        agree(case, {"labels": np.where(counted > 0, text, -100)}, official)
    if case == "alignment":
        for i, layer in enumerate(recipe.alignment_student()):
            names = {f"student_init.layer_{i}.{key}.weight": value for key, value in layer.items()}
            agree(case, names, official)
    if case == "kl":
        student, teacher = recipe.kl_logits()
        agree(case, {"student_logits": student, "teacher_logits": teacher}, official)


def agree(where: str, made: dict[str, np.ndarray], official: dict[str, np.ndarray]) -> None:
    """Raises where the recipe is not the file: integers exactly, floats to 2e-6 of the largest number."""
    gaps = {name: float(np.abs(value - official[name]).max()) for name, value in made.items()}
    worst = max(gaps, key=gaps.__getitem__)
    largest = max(1.0, *(float(np.abs(value).max()) for value in made.values()))
    print(f"{where}: recipe and file differ by {gaps[worst]:.1e} at most ({worst})")
    if gaps[worst] > 2e-6 * largest:
        raise SystemExit(f"{where}: the recipe does not give {worst}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
