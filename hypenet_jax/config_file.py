"""A config file with its overrides from the command line, and a config as JSON. Knows no section of any config.

A config file is a short Python program that defines `config`: a frozen dataclass, or a function of typed arguments that
returns one. The arguments, and every field of the value, can be set on the command line.
"""

import contextlib
import dataclasses
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config file or its settings cannot be used; the message says which and what would work."""


def load(
    path: str, kind: type[Config] | tuple[type[Config], ...], arguments: Sequence[str] = ()
) -> Config:
    """The `config` of a config file, with overrides from the command line.

    Args:
      path: a Python file.
      kind: the class of config that is expected, or several; each names its command in a class variable `command`.
      arguments: `--name value` pairs: arguments of the file's function first, then dotted fields of the value.
    Raises:
      ConfigError: no such file, no `config` in it, or another kind of config.
      SystemExit: code 2 for an unknown or ill-typed argument, after naming the nearest known ones; code 0 after
        `--help`, which lists the file's own arguments and then all fields.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    made: Any = runpy.run_path(path).get("config")
    if made is None:
        raise ConfigError(f"{path} defines no `config`")
    rest, own = list(arguments), ()
    if callable(made):
        if "--help" in rest:
            with contextlib.suppress(SystemExit):
                tyro.cli(made, args=["--help"], prog=path)
        own = tuple(inspect.signature(made).parameters)
        made, rest = _call(made, own, rest, path)
    if not isinstance(made, kind):
        name, command = type(made).__name__, getattr(made, "command", "launch.train")
        raise ConfigError(f"{path} makes a {name}; use python -m {command}")
    if not rest:
        return made
    try:
        fields = (tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed)
        return tyro.cli(type(made), default=made, args=rest, prog=path, config=fields)
    except SystemExit as stopped:
        if stopped.code:
            # The parser of the fields has not heard of them.
            print(f"{path} itself takes {', '.join(map(_flag, own)) or 'nothing'}", file=sys.stderr)
        raise


def _call(
    make: Callable[..., Any], own: tuple[str, ...], arguments: list[str], path: str
) -> tuple[Any, list[str]]:
    """The value a config function makes of the arguments that are its own, and the other arguments."""
    flags = {*map(_flag, own)}
    mine: list[str] = []
    rest: list[str] = []
    taker = rest
    for word in arguments:
        if word.startswith("--"):
            taker = mine if _flag(word.removeprefix("--").split("=")[0]) in flags else rest
        taker.append(word)
    return tyro.cli(make, args=mine, prog=path, description=make.__doc__), rest


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def resolved(config: Any) -> Any:
    """A config as JSON can hold it, each section with the name of its kind, so that equal means the same run."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [resolved(item) for item in config]
    return config
