"""Measurements by context length: needles, perplexity, speed; what they return, and a page that shows it."""

from hypenet_jax.evals.language.heldout import held_out
from hypenet_jax.evals.language.perplexity import perplexity_by_length
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator, retrieval
from hypenet_jax.evals.retrieval.passkey import PasskeyEvaluator

__all__ = [
    "EvalModel",
    "NeedleEvaluator",
    "PasskeyEvaluator",
    "Report",
    "Row",
    "held_out",
    "perplexity_by_length",
    "retrieval",
]
