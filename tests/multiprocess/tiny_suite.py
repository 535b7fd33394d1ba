"""Most that can be measured, of a tiny Qwen3 and a tiny hybrid, as a config file.

python tests/multiprocess/tiny_suite.py FOLDER TEXT writes both models to FOLDER, and then
python -m launch.evaluate tests/multiprocess/tiny_suite.py --folder FOLDER --text TEXT --out OUT measures them.
"""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
from tiny_chain import CATALOGUE, TEACHER, VOCABULARY

from hypenet_jax.data.sources import TextFiles, documents
from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.language.predictions import READ_PART
from hypenet_jax.evals.model import ModelSource
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.evals.sweep import SweepEvaluator
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.weights import save_hf

LONG = READ_PART + 512  # read in two parts


def source(text: str) -> TextFiles:
    return TextFiles(text, ("*.txt",))


def write_models(folder: pathlib.Path, text: pathlib.Path) -> None:
    """Both models, with random weights, and their tokenizer."""
    texts = (document.text or "" for document in documents(source(str(text))))
    tokenizer = train_tokenizer(texts, TrainedTokenizer(VOCABULARY, CATALOGUE.token_names()))
    start = Initialization(std=0.5, embedding_std=0.3)  # no two tokens are nearly as likely
    for seed, (name, config) in enumerate(
        {"teacher": TEACHER, "student": hypenet(TEACHER, (1,))}.items()
    ):
        params = init_params(Decoder(config, jnp.float32, start=start), jax.random.key(seed))
        save_hf(folder / name, config, params, dtype="float32")
        tokenizer.save(folder / name)


def config(folder: str, text: str, out: str) -> EvaluationConfig:
    short = PerplexityEvaluator(lengths=(64,), windows=2, targets=16)
    perplexity = dataclasses.replace(
        short, lengths=(64, LONG, 10**6), position_length=64, sliding_length=64, stride=32
    )
    return EvaluationConfig(
        models=(
            ModelSource("teacher", f"{folder}/teacher"),
            ModelSource("student", f"{folder}/student"),
        ),
        out=out,
        text=source(text),
        measurements={
            "needle": NeedleEvaluator(
                catalogue=CATALOGUE,
                lengths=(64,),
                needles=2,
                sequences=8,
                long_sequences=8,
                long_length=64,
            ),
            "perplexity": perplexity,
            "ruler": RulerEvaluator(tasks=("niah_single_2", "vt"), lengths=(1600,), samples=3),
            "sweep": SweepEvaluator(
                models=("student",), constants=(16.0,), by=short, metric="perplexity"
            ),
            "speed": SpeedEvaluator(lengths=(64,), rounds=1),
        },
    )


if __name__ == "__main__":
    write_models(*map(pathlib.Path, sys.argv[1:]))
