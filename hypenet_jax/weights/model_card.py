"""The model card of an exported HypeNet: `README.md` with the fields that a model hub reads, and how to load it."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from hypenet_jax.hub import cached_name, model_folder
from hypenet_jax.weights.hf_config import read_json

CARD = "README.md"
# Fields of the teacher's card that hold for whatever is made of it.
CARRIED = ("license", "license_name", "license_link", "language")
FIXED: Mapping[str, Any] = {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["hypenet", "linear-attention", "long-context"],
}
UNLICENSED = "The model that it was converted from names none in its card."
UNSAID = "Not said here; that of the model that it was converted from holds."
LOADING = """## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```

The code lies beside the weights, in plain PyTorch for CPU and CUDA. In JAX: `hypenet_jax.load_hf("{name}")`.
"""
WITHOUT_CODE = """## How to load it

In JAX: `hypenet_jax.load_hf("{name}")`. It has a mixer that is not in the PyTorch code for transformers.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says beyond the `config.json` beside it.

    Attributes:
      teacher: folder of the model that was converted, or its name in the local cache (`model_folder`); licence and
        language of its own card are carried over, token ids and generation settings too.
      numbers: measurements of this model by what they are, in their order.
    """

    teacher: str | os.PathLike[str] | None = None
    numbers: Mapping[str, float | int] = dataclasses.field(default_factory=dict)


def write_card(folder: str | os.PathLike[str], card: ModelCard, name: str | None = None) -> None:
    """Writes `folder/README.md`, over an older one.

    Args:
      folder: holds the `config.json` of a HypeNet.
      name: of the model; None takes the folder's.
    """
    folder = pathlib.Path(folder)
    text = card_text(read_json(folder / "config.json"), card, name or folder.resolve().name)
    (folder / CARD).write_text(text, encoding="utf-8")


def card_text(fields: Mapping[str, Any], card: ModelCard, name: str) -> str:
    """The card of a model with these fields of a `config.json`."""
    teacher = None if card.teacher is None else model_folder(card.teacher)
    base, carried = (None, {}) if teacher is None else (hub_name(teacher), _carried(teacher))
    in_transformers = "auto_map" in fields
    fixed = {key: value for key, value in FIXED.items() if in_transformers or key != "library_name"}
    metadata = {**fixed, **({"base_model": base} if base else {}), **carried}
    kinds = fields["mixer_types"]
    softmax = [str(layer) for layer, kind in enumerate(kinds) if kind == "attn"]
    origin = "" if teacher is None else f" from `{base or teacher.resolve().name}`"
    lines = [
        heading(metadata, name),
        f"A HypeNet ([arXiv 2601.22156](https://arxiv.org/abs/2601.22156)), converted with HALO{origin}.",
        f"Of its {len(kinds)} layers {len(softmax)} are softmax attention ({', '.join(softmax) or 'none'}); the others "
        "are recurrent, with a state that does not grow with the text.\n",
        (LOADING if in_transformers else WITHOUT_CODE).format(name=name),
    ]
    if card.numbers:
        lines.append("## Numbers\n\n| what | value |\n|---|---|")
        lines += [f"| {what} | {_written(value)} |" for what, value in card.numbers.items()]
        lines.append("")
    licence = carried.get("license_name", carried.get("license"))
    from_teacher = f"{licence}, the licence of the model that it was converted from."
    without = UNSAID if teacher is None else UNLICENSED
    lines.append(f"## Licence\n\n{from_teacher if licence else without}")
    return "\n".join(lines) + "\n"


def heading(metadata: Mapping[str, Any], name: str) -> str:
    """The first lines of a card: what a hub reads, and the title."""
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n# {name}\n"


def _written(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def hub_name(folder: pathlib.Path) -> str | None:
    """owner/name of a downloaded model: from the layout of the hub's cache, else as its config.json says it."""
    if name := cached_name(folder):
        return name
    said = read_json(folder / "config.json").get("_name_or_path")
    is_name = isinstance(said, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", said)
    return said if is_name else None


def _carried(teacher: pathlib.Path) -> dict[str, Any]:
    if not (teacher / CARD).is_file():
        return {}
    metadata = metadata_load(teacher / CARD) or {}
    return {key: metadata[key] for key in CARRIED if key in metadata}
