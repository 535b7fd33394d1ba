"""How the TPU kernels of the losses cut their work: as much at once as a core's VMEM holds."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss.tpu_losses import CrossEntropy, Kl

LANES = 128
TOKENS = (128, 256, 512, 1024)  # more would save few bytes, and hold more logits
ROWS, COLUMNS = 512, 2048
VMEM_PER_COLUMN = 2**14  # bytes; fewer columns only on v4
INTERPRETED = 32, 32, 12  # tokens, rows, columns


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """All that a kernel knows before it sees arrays.

    Attributes:
      vocabulary: rows of the head.
      tokens: of a chunk.
      rows: of the head per grid step.
      columns: of hidden and head per grid step of the gradients.
      vmem: bytes that a kernel may take; None is the compiler's limit.
      interpret: run each step on the host.
    """

    loss: CrossEntropy | Kl
    vocabulary: int
    tokens: int
    rows: int
    columns: int
    vmem: int | None
    interpret: bool

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.vocabulary, self.rows)

    def index(self, tile: Int[Array, ""]) -> Int[Array, "S 1"]:
        """Rows of the head that a tile holds."""
        return tile * self.rows + jax.lax.broadcasted_iota(jnp.int32, (self.rows, 1), 0)


def make(
    loss: CrossEntropy | Kl, vocabulary: int, hidden: tuple[Float[Array, "T _"], ...]
) -> TpuPlan:
    """For the bfloat16 hidden states of the student, then of the teacher if there is one.

    Half of the VMEM is for what stays there from tile to tile, which sets the tokens of a chunk;
    the other half for what comes and goes twice buffered, which sets the rows of a tile.
    """
    if dispatch.interprets():
        tokens, rows, columns = INTERPRETED
        return TpuPlan(loss, vocabulary, tokens, rows, columns, vmem=None, interpret=True)
    info = pltpu.get_tpu_info()
    half, length = info.vmem_capacity_bytes // 2, len(hidden[0])
    columns = _columns(hidden[0].shape[1], info)
    width = sum(x.shape[1] for x in hidden)
    # In bytes: hidden; and of the gradients hidden and a float32 sum.
    per_token = max(4 * width, 12 * columns)
    most = max(n for n in TOKENS if n * per_token <= half or n == TOKENS[0])
    chunks = pl.cdiv(length, most)
    tokens = pl.cdiv(length, chunks * LANES) * LANES
    # Heads and logits; and of the gradients also float32 sums, read and written.
    scores = 4 * width + 12 * tokens * len(hidden)
    gradients = 24 * columns + 16 * tokens * len(hidden)
    rows = max(half // max(scores, gradients) // LANES, 1) * LANES
    rows = min(rows, ROWS, vocabulary)
    return TpuPlan(loss, vocabulary, tokens, rows, columns, vmem=7 * half // 4, interpret=False)


def _columns(width: int, info: pltpu.TpuInfo) -> int:
    """All, or as many for each core, unless the VMEM is small."""
    most = min(COLUMNS, info.vmem_capacity_bytes // VMEM_PER_COLUMN)
    parts = [n for n in range(1, width // LANES + 1) if width % (n * LANES) == 0]
    fitting = [n for n in parts if width // n <= most]
    return width // min([n for n in fitting if n % info.num_cores == 0] or fitting)
