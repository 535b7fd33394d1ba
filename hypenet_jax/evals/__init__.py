"""Measurements by context length: needles, perplexity, speed; what they return, and a page that
shows it.
"""

from hypenet_jax.evals.language.heldout import held_out
from hypenet_jax.evals.language.perplexity import perplexity_by_length
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.retrieval.needle import needle_accuracy, retrieval

__all__ = [
    "EvalModel",
    "Report",
    "Row",
    "held_out",
    "needle_accuracy",
    "perplexity_by_length",
    "retrieval",
]
