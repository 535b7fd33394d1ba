"""The kernels of lightning attention on TPU, forward and backward, as functions of one head and
chunk.

With P = q k^T * within, D = scale * do v^T * within, S the state before the chunk and G the
cotangent of the state after it:

  o  = scale * (P v + (q S) * entering)            S' = across * S + (k * leaving)^T v
  dq = D k + scale * (do S^T) * entering           dk = D^T q + (v G^T) * leaving
  dv = scale * P^T do + (k G) * leaving            G' = across * G + scale * (q * entering)^T do

S is made with the chunks and G against them. Where the forward pass saved S, one kernel does all in
reverse; where it did not, one kernel makes S again in order and gives dq, another the rest in
reverse.
"""

from jaxtyping import Array, Float

from pallas_kernels.lightning_attention import tpu_grid
from pallas_kernels.lightning_attention.tpu_chunk import Factors, TpuPlan, product
from pallas_kernels.lightning_attention.tpu_grid import Kernel, Result

Tokens = Float[Array, "B T W"]
Chunk = Float[Array, "C H"]
State = Float[Array, "H H"]


def forward(
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens],
    state: Float[Array, "B N H H"],
    packed: tuple[Float[Array, "B 8 S"], ...],
    *,
    save: bool,
) -> Result:
    """Outputs and last state from q, k, v; also the state before every chunk if it is to be
    saved."""
    kernel = Kernel("forward", _forward, num_outputs=1, squares=2, states=2)
    return tpu_grid.call(kernel, plan, log_decay, tokens, state, packed, save=save)


def backward_from_saved(
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    state_cotangent: Float[Array, "B N H H"],
    saved: Float[Array, "B N M H H"],
    packed: tuple[Float[Array, "B 8 S"], ...],
) -> Result:
    """Cotangents of q, k, v and the first state, from q, k, v, do and the state before every
    chunk."""
    kernel = Kernel("backward", _backward, num_outputs=3, squares=5, states=4, backward=True)
    return tpu_grid.call(kernel, plan, log_decay, tokens, state_cotangent, packed, (saved,))


def backward_from_nothing(
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    state_cotangent: Float[Array, "B N H H"],
    state: Float[Array, "B N H H"],
    packed: tuple[Float[Array, "B 8 S"], ...],
) -> Result:
    """As `backward_from_saved`, with two kernels that need only the first state."""
    kernel = Kernel("backward_queries", _backward_queries, num_outputs=1, squares=2, states=2)
    queries = tpu_grid.call(kernel, plan, log_decay, tokens[1:], state, packed)
    kernel = Kernel("backward_keys", _backward_keys, 2, squares=4, states=3, backward=True)
    keys = tpu_grid.call(kernel, plan, log_decay, tokens, state_cotangent, packed)
    return Result(queries.tokens + keys.tokens, keys.carried)


def _forward(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], state: State
) -> tuple[tuple[Chunk], State]:
    q, k, v = tokens
    scores = product(plan, q, k, (1, 1)) * factors.within
    through_state = product(plan, q, state, (1, 0)) * factors.entering
    out = plan.scale * (product(plan, scores, v, (1, 0)) + through_state)
    return (out,), _next_state(plan, factors, k, v, state)


def _backward(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], cotangent: State, state: State
) -> tuple[tuple[Chunk, Chunk, Chunk], State]:
    _, k, v, do = tokens
    dq = _dq(plan, factors, k, v, do, state)
    dk_dv, cotangent = _backward_keys(plan, factors, tokens, cotangent)
    return (dq, *dk_dv), cotangent


def _backward_queries(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], state: State
) -> tuple[tuple[Chunk], State]:
    k, v, do = tokens
    dq = _dq(plan, factors, k, v, do, state)
    return (dq,), _next_state(plan, factors, k, v, state)


def _backward_keys(
    plan: TpuPlan, factors: Factors, tokens: list[Chunk], cotangent: State
) -> tuple[tuple[Chunk, Chunk], State]:
    q, k, v, do = tokens
    leaving = factors.leaving
    scores = plan.scale * product(plan, q, k, (1, 1)) * factors.within
    dscores = _dscores(plan, factors, v, do)
    dk = product(plan, dscores, q, (0, 0)) + product(plan, v, cotangent, (1, 1)) * leaving
    dv = product(plan, scores, do, (0, 0)) + product(plan, k, cotangent, (1, 0)) * leaving
    read = product(plan, q * (plan.scale * factors.entering), do, (0, 0))
    return (dk, dv), cotangent * factors.across + read


def _dq(plan: TpuPlan, factors: Factors, k: Chunk, v: Chunk, do: Chunk, state: State) -> Chunk:
    through_state = plan.scale * product(plan, do, state, (1, 1)) * factors.entering
    return product(plan, _dscores(plan, factors, v, do), k, (1, 0)) + through_state


def _dscores(plan: TpuPlan, factors: Factors, v: Chunk, do: Chunk) -> Float[Array, "C C"]:
    return plan.scale * product(plan, do, v, (1, 1)) * factors.within


def _next_state(plan: TpuPlan, factors: Factors, k: Chunk, v: Chunk, state: State) -> State:
    return state * factors.across + product(plan, k * factors.leaving, v, (0, 0))
