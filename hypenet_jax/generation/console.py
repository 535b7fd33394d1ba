"""What is asked of a writer: prompts of a command line or a file, or lines typed one after the other."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from hypenet_jax.generation.completions import CompletionFile, Prompt
from hypenet_jax.generation.model import model_fingerprint
from hypenet_jax.generation.text_generator import TextGenerator, complete
from hypenet_jax.generation.throughput import Speed


def answer(
    writer: TextGenerator, prompts: Sequence[Prompt], speed: Speed, out: CompletionFile | None
) -> None:
    """Continues all prompts, to a file as batches end, or printed together.

    Raises:
      ValueError: some could not be continued; the others were.
    """
    done = {} if out is None else dict(out.done)
    for some in complete(writer, prompts, speed, skip=tuple(done)):
        done |= some
        if out is not None:
            out.add(some)
    if out is not None:
        out.finish()
    else:
        print("\n\n".join(done[i].prompt + done[i].text for i in sorted(done)))
    failed = [f"prompt {i + 1}: {done[i].error}" for i in sorted(done) if done[i].error]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ValueError(f"{len(failed)} of {len(done)} failed; {'; '.join(failed[:5])}{more}")


def converse(writer: TextGenerator, speed: Speed) -> None:
    """Continues each line of standard input as it comes, streaming; ends with the input."""
    print("> ", end="", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip():
            prompt = [line.rstrip("\n")]
            show = lambda text: print(text, end="", flush=True)  # noqa: E731
            for done in complete(writer, prompt, speed, on_text=show):
                print(f"\nerror: {done[0].error}" if done[0].error else "")
        print("> ", end="", file=sys.stderr, flush=True)


def settings_of(writer: TextGenerator, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All that the completions of these prompts depend on, as a partial file records it."""
    texts = json.dumps([str(prompt) for prompt in prompts])
    return {
        "model": model_fingerprint(
            writer.decoder, writer.params, writer.tokenizer.fingerprint, writer.end_ids
        ),
        "prompts": hashlib.sha256(texts.encode()).hexdigest(),
        "sampling": dataclasses.asdict(writer.sampling),
        **{name: getattr(writer, name) for name in ("max_new_tokens", "max_length", "seed")},
    }
