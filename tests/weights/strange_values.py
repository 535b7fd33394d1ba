"""Values that no field of a config.json should have."""

from hypenet_jax.weights import CheckpointError
from hypenet_jax.weights.hf_config import from_hf

STRANGE = [None, [], ["x"], {}, {"x": 1}, "x", -1, 0, 1.5, True, float("nan"), 10**400]


def check_strange_values(fields) -> None:
    """Each field with each of them is read, or refused by its name."""
    for key in fields:
        for value in STRANGE:
            try:
                from_hf({**fields, key: value})
            except CheckpointError as error:
                assert key in str(error) or "rotary base" in str(error)  # noqa: PT017
