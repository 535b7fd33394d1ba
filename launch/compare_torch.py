"""Training throughput of the teacher, here and as transformers' Qwen3 in PyTorch, on this machine's CPU.

    pip install -e '.[torch]'
    python -m launch.compare_torch [--rounds 15] [--steps 3] [--threads 2]

Same sizes, float32, same batch, forward + backward + AdamW on both sides, in turns. Prints tokens per second and the
ratio ours / PyTorch. Threads of PyTorch wait by spinning, so only a machine with free cores gives a fair ratio.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import tyro

LAYERS, D_MODEL, HEADS, KV_HEADS, HEAD_DIM, D_MLP, VOCABULARY = 4, 128, 4, 2, 32, 384, 1297
THETA, RATE, BETAS, DECAY = 1e6, 1e-3, (0.9, 0.95), 0.1


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    rounds: int = 15
    """Turns of each side."""
    steps: int = 3
    """Training steps of a turn."""
    rows: int = 32
    length: int = 128
    threads: int = 2


def ours(tokens: np.ndarray) -> Callable[[], float]:
    """One training step of this project, as `launch.train` runs it in stage finetune."""
    import jax

    from hypenet_jax.data.batch import make_row, stack_rows
    from hypenet_jax.halo.finetune import finetune_stage
    from hypenet_jax.model.config import ModelConfig
    from hypenet_jax.model.decoder import Decoder, init_params
    from hypenet_jax.model.mixers import SoftmaxSpec
    from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
    from hypenet_jax.train.state import create_state
    from hypenet_jax.train.step import make_train_step

    mixer = SoftmaxSpec(HEADS, KV_HEADS, HEAD_DIM, THETA)
    config = ModelConfig(VOCABULARY, D_MODEL, D_MLP, (mixer,) * LAYERS, tie_embeddings=True)
    decoder = Decoder(config, jax.numpy.float32)
    rates = OptimizerConfig(
        peak_lr=RATE,
        final_lr=RATE,
        warmup_steps=0,
        steps=1000,
        b1=BETAS[0],
        b2=BETAS[1],
        weight_decay=DECAY,
    )
    optimizer, stage = Optimizer(rates), finetune_stage(decoder)
    state = create_state(init_params(decoder, jax.random.key(0)), stage.trainable, optimizer)
    step = make_train_step(stage, optimizer, accumulate=1)
    batch = stack_rows([make_row(row, np.ones_like(row)) for row in tokens])

    def run() -> float:
        nonlocal state
        state, metrics = step(state, None, batch)
        return float(metrics["loss"])

    return run


def pytorch(tokens: np.ndarray, threads: int) -> Callable[[], float]:
    """The same step of transformers' Qwen3ForCausalLM with scaled-dot-product attention."""
    # Both come with the extra `torch`, which the type check does not install.
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import Qwen3Config, Qwen3ForCausalLM  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rope_theta=THETA,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    ids = torch.from_numpy(tokens.astype(np.int64))

    def run() -> float:
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def main() -> None:
    """Times both sides in turn and prints the ratio of their throughputs."""
    arguments = tyro.cli(Arguments, description=__doc__)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    size = (arguments.rows, arguments.length)
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=size, dtype=np.int32)
    sides = {"ours": ours(tokens), "PyTorch": pytorch(tokens, arguments.threads)}
    for name, run in sides.items():
        print(f"{name}: loss {run():.4f}, then {run():.4f}")
    times = {name: [] for name in sides}
    for name, run in [*sides.items()] * arguments.rounds:
        start = time.perf_counter()
        for _ in range(arguments.steps):
            run()
        times[name].append((time.perf_counter() - start) / arguments.steps)
    for label, summary in (("median", statistics.median), ("best round", min)):
        speed = {name: tokens.size / summary(each) for name, each in times.items()}
        numbers = ", ".join(f"{name} {each:,.0f} tokens/s" for name, each in speed.items())
        print(f"{label}: {numbers}, ratio {speed['ours'] / speed['PyTorch']:.2f}")


if __name__ == "__main__":
    main()
