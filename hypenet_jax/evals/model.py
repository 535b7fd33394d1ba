"""What is measured: models in folders, and a model with its weights, its tokenizer and the text that it reads."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import Source, documents
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.fingerprint import digest
from hypenet_jax.generation.model import Model, model_fingerprint
from hypenet_jax.generation.text_generator import end_ids
from hypenet_jax.hub import model_folder
from hypenet_jax.model.config import ModelConfig, with_logit_scale, with_rope_scaling
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.hype import logit_scale_from_hf
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.weights import load_hf


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out text of a prepared corpus, whose tokenizer the models must have."""

    folder: str


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """One model of an evaluation.

    Attributes:
      label: its name in tables and plots.
      folder: Hugging Face folder of HypeNet or a teacher, or a name in the local cache (`model_folder`).
      logit_scale: in place of the `attn_logits_scaling` of its config.json, and written as there: "hype 500", a
        constant, None for none; "stored" keeps what is there.
      rope_scaling: in place of that of its config.json, such as YaRN for contexts beyond those of its training; None
        for none; "stored" keeps what is there.
    """

    label: str
    folder: str
    logit_scale: str | float | None = "stored"
    rope_scaling: RopeScaling | Literal["stored"] | None = "stored"

    @property
    def path(self) -> pathlib.Path:
        """Where the folder lies."""
        return model_folder(self.folder)

    def scaled(self, config: ModelConfig) -> ModelConfig:
        """The architecture of its folder with its own scales.

        Raises:
          ValueError: a scale that means nothing, or nothing that it could scale.
        """
        try:
            if self.logit_scale != "stored":
                config = with_logit_scale(config, logit_scale_from_hf(self.logit_scale))
            if self.rope_scaling != "stored":
                config = with_rope_scaling(config, self.rope_scaling)
        except ValueError as error:
            raise ValueError(f"{self.label!r}: {error}") from error
        return config


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """A model as it is measured.

    Attributes:
      name: of the model in every row of the report.
      decoder: with `scan` as the parameters are grouped.
      params: of the decoder.
      tokenizer: of the model; None where nothing is measured that reads or writes words.
      end_ids: tokens that end what it writes.
      text: tokens of held-out text.
      folder: where the model comes from; None where it was made here.
    """

    name: str
    decoder: Model
    params: Params
    tokenizer: Tokenizer | None = None
    end_ids: tuple[int, ...] = ()
    text: Int[np.ndarray, " n"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    folder: pathlib.Path | None = None

    @property
    def model_fingerprint(self) -> str:
        """Of all that the model's answers depend on, whatever is read to it."""
        words = None if self.tokenizer is None else self.tokenizer.fingerprint
        return model_fingerprint(self.decoder, self.params, words, self.end_ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all that the model's numbers depend on, the text included."""
        return digest([self.model_fingerprint, hashlib.sha256(self.text.tobytes()).hexdigest()])

    def scaled(self, logit_scale: str | float | None) -> "EvalModel":
        """The same with another `attn_logits_scaling`, written as in a config.json."""
        assert isinstance(self.decoder, Decoder)
        config = with_logit_scale(self.decoder.config, logit_scale_from_hf(logit_scale))
        return dataclasses.replace(self, decoder=self.decoder.clone(config=config))

    def with_single_layers(self) -> "EvalModel":
        """The same model with every layer alone, as decoding wants it: a scan would copy the caches."""
        assert isinstance(self.decoder, Decoder)
        decoder = self.decoder.clone(scan=False, remat="none")
        return dataclasses.replace(self, decoder=decoder, params=unstack_layers(self.params))


def open_model(
    source: ModelSource, mesh: Mesh, *, dtype: str | None, text: Source | HeldOut, at_most: int
) -> EvalModel:
    """The model of a folder with its tokenizer and at most so many tokens of text.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: no model, no tokenizer, no text, or a scale that means nothing.
      ProcessesDiffer: the processes have different texts or tokenizers.
    """
    folder = source.path
    tokenizer = load_tokenizer(folder)
    tokens = text_tokens(text, tokenizer, at_most)
    runtime.check_agreement(text=hashlib.sha256(tokens.tobytes()).hexdigest())
    decoder, params = load_hf(folder, dtype=dtype, mesh=mesh)
    ends = end_ids(folder) or (tokenizer.end_id,)
    decoder = decoder.clone(config=source.scaled(decoder.config))
    return EvalModel(source.label, decoder, params, tokenizer, ends, tokens, folder)


def text_tokens(
    source: Source | HeldOut, tokenizer: Tokenizer, at_most: int
) -> Int[np.ndarray, " n"]:
    """The first tokens of a source, the end token after each document; what is empty or not UTF-8 is left out.

    Raises:
      FileNotFoundError: there is no such folder, or no such file in it.
      ValueError: no document holds text, or a corpus was prepared with another tokenizer.
    """
    if isinstance(source, HeldOut):
        prepared = open_prepared(source.folder)
        if prepared.tokenizer().fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{source.folder} was prepared with another tokenizer than the model's; evaluate on a folder of text"
            )
        return prepared.tokens("heldout")[:at_most].astype(np.int32)
    end, pieces, count = np.asarray([tokenizer.end_id], np.int32), [], 0
    for document in documents(source):
        if count >= at_most:
            break
        if document.text:
            pieces += [tokenizer.encode(document.text), end]
            count += len(pieces[-2]) + 1
    if not pieces:
        raise ValueError(
            f"no document in {source.folder} holds text: all are empty or not UTF-8; name a folder of text"
        )
    return np.concatenate(pieces)[:at_most]


def random_model(name: str, config: ModelConfig, dtype: DTypeLike) -> EvalModel:
    """A model whose weights are random numbers of `dtype`, for what does not depend on them, such as times."""
    decoder, key = Decoder(config, dtype, scan=False), jax.random.key(0)
    shapes = jax.eval_shape(functools.partial(init_params, decoder), key)

    def small(*like: Any) -> Array:
        # As models start: activations stay finite through any depth.
        return 0.02 * jax.random.normal(*like)

    params: Any = optax.tree.random_like(key, shapes, small, dtype)
    return EvalModel(name, decoder, params)
