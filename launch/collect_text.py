"""Text that every machine has, for conversions that anyone can repeat:  python -m launch.collect_text FOLDER

Documentation and source of the interpreter and of its installed packages, as JSON lines. What is there is kept.
"""

import dataclasses
import pathlib

import tyro

from hypenet_jax import runtime
from hypenet_jax.data.installed_text import installed_folders, write_installed_text


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    target: tyro.conf.Positional[pathlib.Path]
    """Folder to write text.jsonl to."""
    folders: tuple[pathlib.Path, ...] = ()
    """Roots of Python files and pages; none: those of the running interpreter and its packages."""


if __name__ == "__main__":
    with runtime.main_guard({OSError: runtime.BAD_DATA}):
        runtime.set_up_logging()
        arguments = tyro.cli(Arguments, description=__doc__)
        write_installed_text(arguments.target, arguments.folders or installed_folders())
