"""A config file with its overrides from the command line, and a config as JSON. Knows no section of any config.

A config file is a short Python program that defines `config`: a frozen dataclass, or a function of typed arguments that
returns one. One parser knows the options of the command, the arguments of that function and every field of the value.
"""

import contextlib
import dataclasses
import inspect
import pathlib
import runpy
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from hypenet_jax.hub import model_folder

Config = TypeVar("Config")

# Sections and settings of earlier versions, and what they are now.
RENAMED = {
    "training.short-halo": "training.neighbor-exchange",
    "stage": "method",
    "race": "speed",
    "sweep.length": "sweep.by.lengths",
    "upstream-parity": "preset",
    "student.rope-in-softmax": "student.softmax.rope",
}


class ConfigError(ValueError):
    """A config file or its settings cannot be used; the message says which and what would work."""


def load(
    path: str, kind: type[Config] | tuple[type[Config], ...], arguments: Sequence[str] = ()
) -> Config:
    """The `config` of a config file with its overrides; see `parse`."""
    return parse([path, *arguments], kind)[0]


def parse(
    arguments: Sequence[str],
    kind: type | tuple[type, ...],
    *options: type,
    usage: str | None = None,
    of_a_folder: tuple[str, str] | None = None,
) -> tuple[Any, ...]:
    """The config that a command line names, with its overrides, and a value of each class in `options`.

    Args:
      arguments: a config file, then options in any order. Fields are dotted: `--training.loop.steps 100`. Where a field
        is a tuple of values with a `name`, such as the stages of a conversion, each is a section of that name:
        `--distill.training.loop.steps 100`.
      kind: the class of config that is expected, or several; each names its command in a class variable `command`,
        the last one that of this command line.
      options: dataclasses of the command's own options, all with defaults.
      usage: what `--help` says above the options.
      of_a_folder: a config file and the option of its function that takes a model folder: that folder, or the name of
        one in the local cache (`model_folder`), may be named in place of a config file.
    Raises:
      ConfigError: no such file, no `config` in it, another kind of config, or a setting that has a new name.
      SystemExit: code 2 for an unknown or ill-typed option, after naming the nearest known ones, and where no config
        file is named; code 0 after `--help`, which lists everything that can be set.
    """
    wants_help = not {"--help", "-h"}.isdisjoint(arguments)
    words = [word for word in arguments if word not in ("--help", "-h")]
    line = _CommandLine(kind if isinstance(kind, tuple) else (kind,), options, usage)
    path = line.config_file(words, wants_help)
    words.remove(path)
    if of_a_folder is not None and not pathlib.Path(path).is_file():
        _check_model(path, of_a_folder[0])
        words = [of_a_folder[1], path, *words]
        path = of_a_folder[0]
    _refuse_renamed(words)
    return line.config(path, words, wants_help)


def resolved(config: Any) -> Any:
    """A config as JSON can hold it, each section with the name of its kind, so that equal means the same run."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **fields}
    if isinstance(config, dict):
        return {name: resolved(item) for name, item in config.items()}
    if isinstance(config, tuple | list):
        return [resolved(item) for item in config]
    return config


def _check_model(model: str, file: str) -> None:
    try:
        if model_folder(model).is_dir():
            return
        reason = f"{model} is neither a folder nor a file; name a folder"
    except FileNotFoundError as error:
        reason = str(error)
    raise ConfigError(f"{reason}; or name a file like {file}")


# A field of a section: name, annotated type, and its default where it has one.
Field = tuple[str, Any] | tuple[str, Any, Any]


@dataclasses.dataclass(frozen=True)
class _CommandLine:
    """What `parse` was given, and its two steps."""

    kinds: tuple[type, ...]
    options: tuple[type, ...]
    usage: str | None

    def config_file(self, words: list[str], wants_help: bool) -> str:
        """The word that is no option, and no value of one of the command's own options."""
        file = ("path", tyro.conf.Positional[str], "")
        parsed, _ = self._parse("", words, file, return_unknown_args=True)
        if parsed.path not in words:
            with contextlib.suppress(SystemExit):
                self._parse("", ["--help"])
            raise SystemExit(0 if wants_help else 2)
        return parsed.path

    def config(self, path: str, words: list[str], wants_help: bool) -> tuple[Any, ...]:
        """The config with its overrides, and the command's own options."""
        make = _defined(path)
        parameters = inspect.signature(make).parameters
        given = {_option(word) for word in words}
        function = ("made", Annotated[Any, tyro.conf.arg(name="", constructor=make)])
        if wants_help and any(
            parameter.default is parameter.empty and _option(name) not in given
            for name, parameter in parameters.items()
        ):
            self._parse(path, ["--help"], function)
        parsed, unknown = self._parse(path, words, function, return_unknown_args=True)
        config = parsed.made
        if not isinstance(config, self.kinds):
            name, command = type(config).__name__, getattr(config, "command", "launch.train")
            raise ConfigError(f"{path} makes a {name}; use python -m {command}")
        if unknown or wants_help:
            fields = _inline(_section([*_fields(config, parameters)], type(config).__doc__))
            words = ["--help"] if wants_help else words
            parsed = self._parse(path, words, function, ("fields", fields))
            config = _replaced(config, parsed.fields)
        return config, *(getattr(parsed, f"command_{i}") for i in range(len(self.options)))

    def _parse(self, path: str, words: list[str], *sections: Field, **how: Any) -> Any:
        """The command's own options and these sections; exits after `--help`."""
        own = [(f"command_{i}", _inline(one), one()) for i, one in enumerate(self.options)]
        command = getattr(self.kinds[-1], "command", "")
        return tyro.cli(
            _section([*own, *sections], self.usage),
            prog=f"python -m {command} {path or 'CONFIG'}",
            description=self.usage,
            args=words,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
            **how,
        )


def _section(fields: Sequence[Field], doc: str | None) -> type:
    """A dataclass of these fields; `doc` explains them."""
    made = [
        (name, kind, *(dataclasses.field(default_factory=lambda d=d: d) for d in default))
        for name, kind, *default in fields
    ]
    section = dataclasses.make_dataclass("Section", made, frozen=True, kw_only=True)
    section.__doc__ = doc
    return section


def _inline(section: Any) -> Any:
    """The section without a name of its own in front of its options."""
    return Annotated[section, tyro.conf.arg(name="")]


def _defined(path: str) -> Any:
    """The function `config` of a file; of a plain value, one without arguments that returns it."""
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    config = runpy.run_path(path).get("config")
    if config is None:
        raise ConfigError(f"{path} defines no `config`")
    return config if callable(config) else lambda: config


def _fields(config: Any, arguments: Mapping[str, inspect.Parameter]) -> Iterator[Field]:
    """What can be set of a config, except fields with the name of an argument, and sections with that of a section."""
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_named(value):
            yield field.name, _inline(dict[str, Any]), {one.name: one for one in value}
        elif field.init and not _yields(value, arguments.get(field.name)):
            yield field.name, kinds[field.name], value


def _yields(value: Any, argument: inspect.Parameter | None) -> bool:
    """Whether the options of a field would be those of this argument."""
    both = (value, argument.default) if argument is not None else ()
    return len({dataclasses.is_dataclass(one) for one in both}) == 1


def _replaced(config: Any, section: Any) -> Any:
    """The config with the values of a section made of its `_fields`."""
    values = {
        name: tuple(value.values()) if _is_named(getattr(config, name)) else value
        for name, value in vars(section).items()
    }
    return dataclasses.replace(config, **values)


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(hasattr(one, "name") for one in value)


def _option(word: str) -> str:
    """`--training.loop.steps=7` as `training.loop.steps`."""
    return word.removeprefix("--").split("=")[0].replace("_", "-")


def _refuse_renamed(words: list[str]) -> None:
    for option in (f".{_option(word)}." for word in words if word.startswith("--")):
        for old, new in RENAMED.items():
            if f".{old}." in option:
                now = option.replace(f".{old}.", f".{new}.").strip(".")
                raise ConfigError(f"--{option.strip('.')} has a new name: --{now}")
