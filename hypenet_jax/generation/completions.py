"""Files of prompts and of completions whose lines stand alone, so that one bad line costs no other."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypenet_jax.fingerprint import digest
from hypenet_jax.generation.model import model_fingerprint
from hypenet_jax.generation.text_generator import Completion, Prompt, TextGenerator
from hypenet_jax.generation.throughput import Throughput


def read_prompts(path: pathlib.Path) -> list[Prompt]:
    """One prompt per line, or from a .jsonl file "prompt" or "messages" of each line; blank lines are passed over.

    Raises:
      ValueError: the file is not UTF-8, or has no line that is not blank.
    """
    try:
        numbered = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it") from None
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompt; write one per line")
    if path.suffix not in (".jsonl", ".json"):
        return [line for _, line in lines]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in lines]


def _prompt_of(line: str, place: str) -> Prompt:
    with contextlib.suppress(ValueError):
        match json.loads(line):
            case {"prompt": _, "messages": _}:
                return ValueError(f'{place}: both "prompt" and "messages"; leave one of them out')
            case {"prompt": str(prompt)}:
                return prompt
            case {"messages": [*messages]} if all(isinstance(one, dict) for one in messages):
                return tuple(messages)
    return ValueError(f'{place}: no JSON object with a text "prompt" or a list of "messages"')


def complete_all(
    generator: TextGenerator,
    prompts: Sequence[Prompt],
    out: "CompletionFile | None" = None,
    throughput: Throughput | None = None,
) -> list[Completion]:
    """Completions of all prompts, in their order; with `out` they are also written there as batches end, and those
    that it has already are not made again."""
    done = {} if out is None else dict(out.done)
    for batch in generator.complete(prompts, throughput, skip=tuple(done)):
        done |= batch
        if out is not None:
            out.add(batch)
    if out is not None:
        out.finish()
    return [done[i] for i in sorted(done)]


def settings_of(generator: TextGenerator, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All that the completions of these prompts depend on, as a partial file records it."""
    config = dataclasses.asdict(generator.config)
    del config["tokens_per_batch"]  # each is continued as if alone
    words, template = generator.tokenizer.fingerprint, None
    if any(isinstance(prompt, tuple) for prompt in prompts):
        template = digest(dataclasses.asdict(generator.template))
    return {
        "model": model_fingerprint(generator.decoder, generator.params, words),
        "prompts": digest([str(prompt) for prompt in prompts]),
        "special_tokens": generator.special_tokens,
        "template": template,
        **config,
    }


class CompletionFile:
    """JSON lines in the order of the prompts at `out`; until all are there, in any order at `out`.partial.

    A run that was cut off leaves the partial file, and the same command goes on from it.
    """

    def __init__(self, out: pathlib.Path, settings: Mapping[str, Any]) -> None:
        """Opens the partial file, or starts it with the settings that its lines come from.

        Raises:
          ValueError: it was started with other settings, or `out` is a folder.
        """
        if out.is_dir():
            raise ValueError(f"{out} is a folder; name a file to write to")
        out.parent.mkdir(parents=True, exist_ok=True)
        self.out, self.partial = out, out.with_name(out.name + ".partial")
        self.done: dict[int, Completion] = {}
        if self.partial.exists():
            self._read(json.loads(json.dumps(settings)))  # JSON has lists alone
        else:
            self._write([{"settings": settings}])

    def add(self, done: Mapping[int, Completion]) -> None:
        """Adds completions by the index of their prompt; they are on disk when this returns."""
        self.done |= done
        self._write([{"index": i, **dataclasses.asdict(row)} for i, row in done.items()])

    def finish(self) -> None:
        """Puts all lines at `out`, in order, and takes the partial file away."""
        ordered = self.partial.with_suffix(".ordered")
        lines = [dataclasses.asdict(self.done[index]) for index in sorted(self.done)]
        ordered.write_text("".join(map(_line, lines)), encoding="utf-8")
        ordered.replace(self.out)
        self.partial.unlink()

    def _read(self, settings: Mapping[str, Any]) -> None:
        text = self.partial.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a line that was cut off is written again
        self.partial.write_text(whole, encoding="utf-8")
        rows = [json.loads(line) for line in whole.splitlines()]
        recorded = rows[0]["settings"] if rows else {}
        other = [name for name in settings if recorded.get(name) != settings[name]]
        if other:
            raise ValueError(
                f"{self.partial} was started with another {' and '.join(other)}; "
                "use the same again, or remove the file to start anew"
            )
        self.done = {row.pop("index"): Completion(**row) for row in rows[1:]}

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))


def _line(row: Mapping[str, Any]) -> str:
    """A completion without an error has no field for it."""
    shown = {name: value for name, value in row.items() if value is not None}
    return json.dumps(shown, ensure_ascii=False) + "\n"
