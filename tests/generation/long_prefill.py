"""Reads a random text with a model of the quickstart's size: python long_prefill.py SOFTMAX_LAYERS LENGTH

Prints the seconds and the largest resident memory of the process in bytes.
"""

import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs.quickstart import TEACHER
from hypenet_jax.generation.prefill import prefill, start_context
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder, init_params


def main(softmax_layers: int, length: int) -> None:
    config = hypenet(TEACHER, tuple(range(softmax_layers)))
    decoder = Decoder(config, jnp.float32, scan=False)
    params = init_params(decoder, jax.random.key(0))
    text = np.random.default_rng(0).integers(0, config.vocab_size, (1, length)).astype(np.int32)
    start = time.perf_counter()
    context = prefill(decoder, params, start_context(decoder, 1, length), text)
    assert bool(jnp.all(jnp.isfinite(context.logits)))
    assert int(context.state.lengths[0]) == length
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
