"""What is typed line by line: prompts to continue, or turns of a chat and its commands."""

import pathlib
import sys
from collections.abc import Iterable, Iterator

import jax

from hypenet_jax.generation.chat import Chat
from hypenet_jax.generation.text_generator import TextGenerator
from hypenet_jax.generation.throughput import Throughput
from hypenet_jax.runtime import reason

COMMANDS = "/reset, /save FOLDER, /load FOLDER"


def continue_lines(generator: TextGenerator, lines: Iterable[str], throughput: Throughput) -> None:
    """Prints how each line goes on, as it is written."""
    for line in _asked(lines):
        for done in generator.complete([line], throughput, on_text=_show):
            print(f"\nerror: {done[0].error}" if done[0].error else "")


def chat_lines(chat: Chat, lines: Iterable[str], throughput: Throughput) -> None:
    """Prints the answer to each line, as it is written; a line that begins with "/" is one of COMMANDS.

    An error costs its turn alone.
    """
    for line in _asked(lines):
        try:
            if line.startswith("/"):
                _obey(chat, line)
            else:
                chat.say(line, on_text=_show, throughput=throughput)
                print()
        except (ValueError, FloatingPointError, OSError) as error:
            print(f"error: {error}")
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            print(f"error: {reason(error)}")


def _asked(lines: Iterable[str]) -> Iterator[str]:
    """The lines that are not blank, each asked for."""
    print("> ", end="", file=sys.stderr, flush=True)
    for line in lines:
        if line.strip():
            yield line.rstrip("\n")
        print("> ", end="", file=sys.stderr, flush=True)


def _obey(chat: Chat, line: str) -> None:
    name, _, rest = line.partition(" ")
    folder = pathlib.Path(rest.strip()).expanduser()
    match name, bool(rest.strip()):
        case "/reset", False:
            chat.reset()
        case "/save", True:
            chat.save(folder)
            print(f"saved {folder}")
        case "/load", True:
            chat.load(folder)
            print(f"loaded {folder}, {len(chat.messages)} messages")
        case _:
            raise ValueError(
                f"{line!r} is no command; use {COMMANDS}, or begin with a space to say it"
            )


def _show(text: str) -> None:
    print(text, end="", flush=True)
