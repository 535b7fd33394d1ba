"""Writes a model as a Hugging Face folder: official names, index, config.json, tokenizer."""

import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.hub import model_folder
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.weights.hf_config import read_json, to_hf
from hypenet_jax.weights.hf_fields import HYBRID, TOKEN_IDS
from hypenet_jax.weights.model_card import ModelCard, write_card
from hypenet_jax.weights.names import (
    EMBEDDING,
    TABLES,
    Tensor,
    flatten,
    shape_problems,
    tensors,
)
from hypenet_jax.weights.shards import DTYPES, INDEX

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
GENERATION = "generation_config.json"
CODE = pathlib.Path(__file__).with_name("transformers_code")
# Where transformers finds the classes of a HypeNet in these files.
AUTO_MAP: Mapping[str, str] = {
    "AutoConfig": "configuration_hypenet.HypeNetConfig",
    "AutoModel": "modeling_hypenet.HypeNetModel",
    "AutoModelForCausalLM": "modeling_hypenet.HypeNetForCausalLM",
}


class _Tensor(NamedTuple):
    """One tensor of the folder, and the type in which it is written."""

    names: Tensor
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.names.their_shape)


def save_hf(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    *,
    dtype: Literal["bfloat16", "float32"] | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = 5 * 2**30,
    card: ModelCard = ModelCard(),  # noqa: B008
) -> None:
    """Writes the model where transformers and the official HypeNet code read it.

    With a HypeNet stand a model card and the code that transformers runs it by (`trust_remote_code=True`). It computes
    the mixers of this package; with another one, code and `auto_map` are left out, and the log and the card say so.

    Every process calls it; the first one writes, holding one shard in memory at a time. The folder appears complete or
    not at all: it is written beside its place and renamed.

    Args:
      folder: must not exist, or be empty.
      params: of `config`; single or stacked layers, on any devices; padding of the vocabulary is taken off.
      dtype: of all tensors; None keeps the type of each, and config.json names that of the embedding.
      tokenizer_from: a checkpoint folder whose tokenizer files, generation settings and token ids are taken over; None
        or what it lacks of the last two: those of the card's teacher.
      max_shard_bytes: a larger model is cut into files of at most this size, with an index.
      card: of a HypeNet: what its README.md says beside the architecture.
    Raises:
      FileExistsError: the folder holds something.
      ValueError: parameters that are not those of `config`, all of them listed, or of a type that no folder holds; or a
        plan that config.json cannot say.
    """
    target = pathlib.Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty; name a new folder or remove this one first")
    first, teacher = (
        None if f is None else model_folder(f) for f in (tokenizer_from, card.teacher)
    )
    sources = [folder for folder in (first, teacher) if folder is not None]
    layout = _layout(config, params, dtype)
    stored = layout[EMBEDDING].dtype.name
    fields = to_hf(config, stored, _carried(first, teacher))
    without_code = {spec.NAME for spec in config.mixers if not spec.CHECKPOINT.in_transformers}
    if fields["model_type"] == HYBRID and not without_code:
        fields["auto_map"] = dict(AUTO_MAP)
    runtime.meet(f"checked {target}")
    if jax.process_index() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            partial = pathlib.Path(beside) / "complete"
            partial.mkdir()
            _write_json(partial / "config.json", fields)
            _copy_companions(partial, sources, fields)
            if fields["model_type"] == HYBRID:
                write_card(partial, card, target.name)
            _write_code(partial, fields, without_code)
            _write_tensors(partial, layout, params, max_shard_bytes)
            partial.replace(target)
    else:
        for _ in _arrays(layout, params):
            pass  # Gathering an array that spans processes needs all of them.
    runtime.meet(f"wrote {target}")


def _layout(config: ModelConfig, params: Params, dtype: str | None) -> dict[str, _Tensor]:
    """The tensors by our path, in the order in which `_arrays` yields them."""
    wanted = {tensor.ours: tensor for tensor in tensors(config)}
    leaves = {
        path: leaf
        for name, tree in params.items()
        for path, leaf in flatten(jax.eval_shape(unstack_layers, {name: tree})).items()
    }
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    for path in shapes.keys() & set(TABLES):  # rows beyond the vocabulary may be padding
        shapes[path] = (min(shapes[path][0], config.vocab_size), *shapes[path][1:])
    wrong = shape_problems(shapes, {path: tensor.our_shape for path, tensor in wanted.items()})
    dtypes = {path: np.dtype(dtype or leaf.dtype) for path, leaf in leaves.items()}
    wrong += [
        f"type: {path} is {one}; written are {', '.join(DTYPES.values())}"
        for path, one in dtypes.items()
        if one.name not in DTYPES.values()
    ]
    if wrong:
        raise ValueError("these parameters are not those of the config:\n  " + "\n  ".join(wrong))
    return {path: _Tensor(wanted[path], dtypes[path]) for path in shapes}


def _arrays(layout: Mapping[str, _Tensor], params: Params) -> Iterator[tuple[_Tensor, np.ndarray]]:
    """Groups of layers one after the other, so that only one is unstacked at a time."""
    for name, tree in params.items():
        for path, leaf in flatten(unstack_layers({name: tree})).items():
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
            yield layout[path], _unpadded(path, layout[path].names, np.asarray(leaf))


def _unpadded(path: str, names: Tensor, array: np.ndarray) -> np.ndarray:
    """Without the rows that `load_hf` added on a mesh."""
    if path not in TABLES:
        return array
    vocabulary = names.our_shape[0]
    if array[vocabulary:].any():
        raise ValueError(
            f"{path} has {len(array)} rows, and those beyond the vocabulary of {vocabulary} are not all zeros: "
            "these parameters are not those of the config"
        )
    return array[:vocabulary]


def _write_tensors(
    folder: pathlib.Path,
    layout: Mapping[str, _Tensor],
    params: Params,
    max_shard_bytes: int,
) -> None:
    sizes = {t.names.theirs: t.size * t.dtype.itemsize for t in layout.values()}
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    pending: dict[str, dict[str, np.ndarray]] = {name: {} for name in plan.filename_to_tensors}
    for tensor, array in _arrays(layout, params):
        names, dtype = tensor
        name = plan.tensor_to_filename[names.theirs]
        # safetensors writes the buffer as it lies: a transposed view would come out scrambled.
        pending[name][names.theirs] = np.ascontiguousarray(names.to_theirs(array).astype(dtype))
        if len(pending[name]) == len(plan.filename_to_tensors[name]):
            save_file(pending.pop(name), folder / name, metadata={"format": "pt"})
            # It is written for its owner alone; others may read it as they may read config.json.
            shutil.copymode(folder / "config.json", folder / name)
    if plan.is_sharded:
        count = sum(tensor.size for tensor in layout.values())
        metadata = {"total_parameters": count, "total_size": sum(sizes.values())}
        index = {"metadata": metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        _write_json(folder / INDEX, index)


def _carried(
    tokenizer_from: pathlib.Path | None, teacher: pathlib.Path | None
) -> dict[str, Any] | None:
    """Fields of a config.json; of a teacher, which may have another longest length, the token ids alone."""
    for folder, names in ((tokenizer_from, None), (teacher, TOKEN_IDS)):
        if folder is not None and (path := folder / "config.json").exists():
            return {k: v for k, v in read_json(path).items() if names is None or k in names}
    return None


def _copy_companions(
    folder: pathlib.Path, sources: Sequence[pathlib.Path], fields: Mapping[str, Any]
) -> None:
    for name in TOKENIZER_FILES:
        if sources and (sources[0] / name).is_file():
            shutil.copyfile(sources[0] / name, folder / name)
    settings = next((s / GENERATION for s in sources if (s / GENERATION).is_file()), None)
    if settings is not None:
        shutil.copyfile(settings, folder / GENERATION)
    else:
        ids = {key: fields[key] for key in TOKEN_IDS if fields.get(key) is not None}
        _write_json(folder / GENERATION, {"_from_model_config": True, **ids})


def _write_code(
    folder: pathlib.Path, fields: Mapping[str, Any], without_code: Iterable[str]
) -> None:
    for file in CODE.glob("*.py") if "auto_map" in fields else ():
        shutil.copyfile(file, folder / file.name)
    if without_code:
        log.warning(
            "the PyTorch code of a HypeNet does not compute the mixer %s: no auto_map, so transformers cannot load it",
            ", ".join(sorted(without_code)),
        )


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
