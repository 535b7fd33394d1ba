"""Tokens per second of prefill and of decoding, without the time in which programs are compiled."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from jax import monitoring

# What JAX reports of tracing, lowering and compiling begins with this.
COMPILING = "/jax/core/compile/"


@dataclasses.dataclass
class Pace:
    """Real tokens, wall seconds, and how many of these went into compilation."""

    tokens: int = 0
    seconds: float = 0.0
    compiling: float = 0.0

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.tokens / max(self.seconds - self.compiling, 1e-9):.1f} tokens/s"

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time of the block, in which its work must end."""
        spans: list[tuple[float, float]] = []

        def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event.startswith(COMPILING):
                end = time.perf_counter()
                start = end - duration_secs
                # A program within a program is reported first, and again as a part of it.
                while spans and spans[-1][0] >= start:
                    spans.pop()
                spans.append((start, end))

        monitoring.register_event_duration_secs_listener(listen)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.compiling += sum(end - start for start, end in spans)
            monitoring.unregister_event_duration_listener(listen)


@dataclasses.dataclass
class Throughput:
    """How fast prompts are prefilled and continuations decoded."""

    prefill: Pace = dataclasses.field(default_factory=Pace)
    decode: Pace = dataclasses.field(default_factory=Pace)

    def __str__(self) -> str:
        compiling = self.prefill.compiling + self.decode.compiling
        return f"prefill {self.prefill}; decode {self.decode}; and {compiling:.1f} s of compilation"
