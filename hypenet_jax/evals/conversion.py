"""What the stages of a conversion recorded, and how it is shown."""

from hypenet_jax.evals.present.presentation import Presentation

_SECTION = "How it was converted"
PRESENTATIONS = (
    Presentation(
        metric="training_loss",
        title="Training loss",
        kind="curves",
        section=_SECTION,
    ),
    Presentation(
        metric="alignment_error",
        title="Imitating each layer",
        note="Error of each new mixer relative to the variance of what it imitates.",
        kind="bars",
        label="relative error",
        section=_SECTION,
    ),
    Presentation(
        metric="selection_importance",
        title="Which layers keep softmax attention",
        note="How much the model needs softmax attention in each layer.",
        kind="bars",
        label="importance",
        section=_SECTION,
    ),
    Presentation(
        metric="tokens",
        title="Training tokens",
        unit="count",
        kind="list",
        section=_SECTION,
    ),
    Presentation(
        metric="sample",
        title="What the models write",
        kind="texts",
    ),
)
