"""The kernels of lightning attention on TPU, forward and backward, as functions of one head and
chunk.

With P = q k^T * within, D = scale * do v^T * within, S the memory before the chunk and G the
cotangent of the memory after it:

  o  = scale * (P v + (q S) * entering)            S' = across * S + (k * leaving)^T v
  dq = D k + scale * (do S^T) * entering           dk = D^T q + (v G^T) * leaving
  dv = scale * P^T do + (k G) * leaving            G' = across * G + scale * (q * entering)^T do

S is made with the chunks and G against them. Where the forward pass saved S, one kernel does all in
reverse; where it did not, one kernel makes S again in order and gives dq, another the rest in
reverse.
"""

from jaxtyping import Array, Float

from pallas_kernels.lightning_attention import tpu_grid
from pallas_kernels.lightning_attention.tpu_chunk import Factors, Plan, product
from pallas_kernels.lightning_attention.tpu_grid import Result

Tokens = Float[Array, "B T W"]
Chunk = Float[Array, "C H"]
Memory = Float[Array, "H H"]


def forward(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens],
    state: Float[Array, "B N H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
    *,
    save: bool,
) -> Result:
    """Outputs and last memory from q, k, v; also the memory before every chunk if it is to be
    saved."""
    return tpu_grid.call(
        _forward,
        plan,
        log_decay,
        tokens,
        state,
        marks,
        gives=1,
        save=save,
        squares=2,
        memories=2,
        name="lightning_attention_forward",
    )


def backward_from_saved(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    memory_cotangent: Float[Array, "B N H H"],
    saved: Float[Array, "B N M H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
) -> Result:
    """Cotangents of q, k, v and the first memory, from q, k, v, do and the memory before every
    chunk."""
    return tpu_grid.call(
        _backward,
        plan,
        log_decay,
        tokens,
        memory_cotangent,
        marks,
        (saved,),
        gives=3,
        backward=True,
        squares=5,
        memories=4,
        name="lightning_attention_backward",
    )


def backward_from_nothing(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    memory_cotangent: Float[Array, "B N H H"],
    state: Float[Array, "B N H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
) -> Result:
    """As `backward_from_saved`, with two kernels that need only the first memory."""
    queries = tpu_grid.call(
        _backward_queries,
        plan,
        log_decay,
        tokens[1:],
        state,
        marks,
        gives=1,
        squares=2,
        memories=2,
        name="lightning_attention_backward_queries",
    )
    keys = tpu_grid.call(
        _backward_keys,
        plan,
        log_decay,
        tokens,
        memory_cotangent,
        marks,
        gives=2,
        backward=True,
        squares=4,
        memories=3,
        name="lightning_attention_backward_keys",
    )
    return Result(queries.tokens + keys.tokens, keys.carried)


def _forward(
    plan: Plan, factors: Factors, tokens: list[Chunk], memory: Memory
) -> tuple[tuple[Chunk], Memory]:
    q, k, v = tokens
    scores = product(plan, q, k, (1, 1)) * factors.within
    through_memory = product(plan, q, memory, (1, 0)) * factors.entering
    out = plan.scale * (product(plan, scores, v, (1, 0)) + through_memory)
    return (out,), _next_memory(plan, factors, k, v, memory)


def _backward(
    plan: Plan, factors: Factors, tokens: list[Chunk], cotangent: Memory, memory: Memory
) -> tuple[tuple[Chunk, Chunk, Chunk], Memory]:
    _, k, v, do = tokens
    dq = _dq(plan, factors, k, v, do, memory)
    dk_dv, cotangent = _backward_keys(plan, factors, tokens, cotangent)
    return (dq, *dk_dv), cotangent


def _backward_queries(
    plan: Plan, factors: Factors, tokens: list[Chunk], memory: Memory
) -> tuple[tuple[Chunk], Memory]:
    k, v, do = tokens
    dq = _dq(plan, factors, k, v, do, memory)
    return (dq,), _next_memory(plan, factors, k, v, memory)


def _backward_keys(
    plan: Plan, factors: Factors, tokens: list[Chunk], cotangent: Memory
) -> tuple[tuple[Chunk, Chunk], Memory]:
    q, k, v, do = tokens
    leaving = factors.leaving
    scores = plan.scale * product(plan, q, k, (1, 1)) * factors.within
    dscores = _dscores(plan, factors, v, do)
    dk = product(plan, dscores, q, (0, 0)) + product(plan, v, cotangent, (1, 1)) * leaving
    dv = product(plan, scores, do, (0, 0)) + product(plan, k, cotangent, (1, 0)) * leaving
    read = product(plan, q * (plan.scale * factors.entering), do, (0, 0))
    return (dk, dv), cotangent * factors.across + read


def _dq(plan: Plan, factors: Factors, k: Chunk, v: Chunk, do: Chunk, memory: Memory) -> Chunk:
    through_memory = plan.scale * product(plan, do, memory, (1, 1)) * factors.entering
    return product(plan, _dscores(plan, factors, v, do), k, (1, 0)) + through_memory


def _dscores(plan: Plan, factors: Factors, v: Chunk, do: Chunk) -> Float[Array, "C C"]:
    return plan.scale * product(plan, do, v, (1, 1)) * factors.within


def _next_memory(plan: Plan, factors: Factors, k: Chunk, v: Chunk, memory: Memory) -> Memory:
    return memory * factors.across + product(plan, k * factors.leaving, v, (0, 0))
