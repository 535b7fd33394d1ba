"""Training throughput of the teacher, here and as transformers' Qwen3 in PyTorch, on this machine's CPU.

    pip install -e '.[torch]'
    python -m launch.compare_torch [--rounds 15] [--steps 3] [--threads 2]

Same sizes, float32, same batch, forward + backward + AdamW on both sides, in turns. Prints tokens per second and the
ratio ours / PyTorch. Threads of PyTorch wait by spinning, so only a machine with free cores gives a fair ratio.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

from hypenet_jax.data.batch import make_row, stack_rows
from hypenet_jax.halo.finetune import finetune_stage
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.state import create_state
from hypenet_jax.train.step import make_train_step
from hypenet_jax.weights.hf_config import to_hf

ATTENTION = SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=32, rope_theta=1e6)
MODEL = ModelConfig(
    vocab_size=1297, d_model=128, d_mlp=384, mixers=(ATTENTION,) * 4, tie_embeddings=True
)
OPTIMIZER = OptimizerConfig(
    peak_lr=1e-3, final_lr=1e-3, warmup_steps=0, steps=1000, weight_decay=0.1
)


def ours(tokens: np.ndarray) -> Callable[[], float]:
    """One training step of this project, as `launch.train` runs it in stage finetune."""
    decoder = Decoder(MODEL, jax.numpy.float32)
    optimizer, stage = Optimizer(OPTIMIZER), finetune_stage(decoder)
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
    # Both come with the extra `torch`: the type check finds the same whether they are installed or not.
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    config = transformers.Qwen3Config(**to_hf(MODEL, "float32"), attn_implementation="sdpa")
    model = transformers.Qwen3ForCausalLM(config).to(torch.float32).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIMIZER.peak_lr,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        weight_decay=OPTIMIZER.weight_decay,
    )
    ids = torch.from_numpy(tokens.astype(np.int64))

    def run() -> float:
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        return loss.item()

    return run


def main(
    rounds: int = 15, steps: int = 3, rows: int = 32, length: int = 128, threads: int = 2
) -> None:
    """Times both sides in turn and prints the ratio of their throughputs.

    Args:
      rounds: turns of each side.
      steps: training steps of a turn.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    tokens = np.random.default_rng(0).integers(
        MODEL.vocab_size, size=(rows, length), dtype=np.int32
    )
    sides = {"ours": ours(tokens), "PyTorch": pytorch(tokens, threads)}
    for name, run in sides.items():
        print(f"{name}: loss {run():.4f}, then {run():.4f}")

    times = {name: [] for name in sides}
    for name, run in [*sides.items()] * rounds:
        start = time.perf_counter()
        for _ in range(steps):
            run()
        times[name].append((time.perf_counter() - start) / steps)
    for label, summary in (("median", statistics.median), ("best round", min)):
        speed = {name: tokens.size / summary(each) for name, each in times.items()}
        numbers = ", ".join(f"{name} {each:,.0f} tokens/s" for name, each in speed.items())
        print(f"{label}: {numbers}, ratio {speed['ours'] / speed['PyTorch']:.2f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
