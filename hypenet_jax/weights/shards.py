"""Which file holds which tensor of a checkpoint folder; what is wrong is found before reading.

Only headers are read here. Names in an index are names in the folder: nothing outside it is ever opened, and nothing
that runs code (pickles, remote modules) at all.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import safetensors

from hypenet_jax.hub import completion_hint
from hypenet_jax.weights.hf_config import CheckpointError, read_json
from hypenet_jax.weights.names import HEAD, Tensor, shape_problems

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
SUFFIX = ".safetensors"
FREQUENCIES = ".self_attn.rotary_emb.inv_freq"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies and what it is; `dtype` in the letters of the file's header ("BF16")."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str


def find_tensors(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of the folder by its name in the checkpoint.

    Raises:
      CheckpointError: lists all of: files the index names and the folder lacks or the reverse, names that leave the
        folder, damaged headers, tensors in two files, tensors that are not where the index says.
    """
    weight_map = _weight_map(folder)
    problems: list[str] = []
    stored: dict[str, Stored] = {}
    for file in _files(folder, weight_map):
        try:
            header = _header(file)
        except (safetensors.SafetensorError, OSError) as error:
            problems.append(f"{file.name} is damaged or incomplete: {error}")
            continue
        twice = sorted(stored.keys() & header.keys())
        problems += [f"{name} is in {stored[name].file.name} and in {file.name}" for name in twice]
        stored |= header
    if weight_map is not None and not problems:
        problems += _disagreements(weight_map, stored)
    _refuse(folder, problems)
    return stored


def check_tensors(
    folder: pathlib.Path, stored: Mapping[str, Stored], wanted: Sequence[Tensor]
) -> None:
    """A CheckpointError lists all missing, unexpected and misshapen tensors, and unknown types.

    A head beside tied embeddings is let through: whether it repeats them is for the reader to see. So are the rotary
    frequencies that old Llama files hold beside the weights: config.json says them.
    """
    stored = {name: each for name, each in stored.items() if not name.endswith(FREQUENCIES)}
    shapes = {tensor.theirs: tensor.their_shape for tensor in wanted}
    if HEAD.theirs in stored:
        shapes.setdefault(HEAD.theirs, wanted[0].their_shape)
    problems = shape_problems({name: tensor.shape for name, tensor in stored.items()}, shapes)
    problems += [
        f"type: {name} is {tensor.dtype}; read are {', '.join(DTYPES)}"
        for name, tensor in stored.items()
        if name in shapes and tensor.dtype not in DTYPES
    ]
    _refuse(folder, problems)


def _weight_map(folder: pathlib.Path) -> dict[str, str] | None:
    index = folder / INDEX
    if not index.exists():
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    outside = sorted({name for name in weight_map.values() if not _is_plain(name)})
    where = f"is not the name of a {SUFFIX} file in the folder"
    _refuse(index, [f"{name!r} {where}" for name in outside])
    return weight_map


def _is_plain(name: str) -> bool:
    return name.endswith(SUFFIX) and not set(name) & set("/\\:\0") and not name.startswith(".")


def _files(folder: pathlib.Path, weight_map: Mapping[str, str] | None) -> list[pathlib.Path]:
    present = {path.name for path in folder.glob("*" + SUFFIX)}
    if weight_map is None:
        named = {WHOLE} if WHOLE in present or len(present) != 1 else present
        if not named <= present:
            _refuse(folder, [_no_single_file(folder, sorted(present))])
        where = f"part of {WHOLE}"
    else:
        named = set(weight_map.values())
        where = f"named by {INDEX}"
    hint = completion_hint(folder)
    problems = [f"{name} is {where} and absent{hint}" for name in sorted(named - present)]
    # Files of another name (an adapter, say) are no part of the model and stay closed.
    extra = [name for name in sorted(present - named) if name.startswith("model")]
    problems += [f"{name} is not {where}: remains of another export?" for name in extra]
    _refuse(folder, problems)
    return [folder / name for name in sorted(named)]


def _no_single_file(folder: pathlib.Path, present: Sequence[str]) -> str:
    if present:
        return f"{', '.join(present)}, but no {INDEX} that says which of them are the model"
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        return (
            f"only pickled weights ({', '.join(pickles)}), which can run code: never loaded; "
            "save the model again as safetensors (the default of transformers' save_pretrained)"
        )
    return f"no {SUFFIX} file{completion_hint(folder)}"


def _header(file: pathlib.Path) -> dict[str, Stored]:
    with safetensors.safe_open(file, framework="numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {n: Stored(file, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}


def _disagreements(weight_map: Mapping[str, str], stored: Mapping[str, Stored]) -> list[str]:
    files = {name: tensor.file.name for name, tensor in stored.items()}
    moved = {name: file for name, file in weight_map.items() if files.get(name) != file}
    unnamed = {name: file for name, file in files.items() if name not in weight_map}
    return [
        *(f"{name} is not in {file}, where {INDEX} says it is" for name, file in moved.items()),
        *(f"{name} in {file} is not named by {INDEX}" for name, file in unnamed.items()),
    ]


def _refuse(where: pathlib.Path, problems: Sequence[str]) -> None:
    if problems:
        raise CheckpointError(f"{where} cannot be loaded:\n  " + "\n  ".join(problems))
