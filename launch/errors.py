"""Which exit code each kind of error ends a command with."""

from hypenet_jax import runtime
from hypenet_jax.train import errors as train_errors
from hypenet_jax.weights import CheckpointError

CODES: dict[type[Exception], int] = {
    train_errors.NumericsError: runtime.NUMERICS,
    train_errors.Preempted: runtime.PREEMPTED,
    train_errors.CheckpointError: runtime.BAD_DATA,
    CheckpointError: runtime.BAD_DATA,
    OSError: runtime.BAD_DATA,
    MemoryError: runtime.DOES_NOT_FIT,
    ValueError: runtime.BAD_CONFIG,
}
