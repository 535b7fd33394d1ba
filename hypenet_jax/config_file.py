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
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

Config = TypeVar("Config")

# Sections and settings of earlier versions, and what they are now.
RENAMED = {
    "training.short-halo": "training.neighbor-exchange",
    "stage": "method",
    "race": "speed",
    "sweep.length": "sweep.by.lengths",
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
      of_a_folder: a config file and the option of its function that takes a folder: that folder may be named in place
        of a config file.
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
    if of_a_folder is not None and pathlib.Path(path).is_dir():
        words = [of_a_folder[1], path, *words]
        path = of_a_folder[0]
    elif of_a_folder is not None and not pathlib.Path(path).is_file():
        raise ConfigError(
            f"{path} is neither a folder nor a file; name a folder, or a file like {of_a_folder[0]}"
        )
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
        file = _inline(_section([("path", tyro.conf.Positional[str], "")], None))
        parsed, _ = self._known("", words, ("file", file, file.__origin__()))
        if parsed.file.path not in words:
            self._exit_with_help("", 0 if wants_help else 2)
        return parsed.file.path

    def config(self, path: str, words: list[str], wants_help: bool) -> tuple[Any, ...]:
        """The config with its overrides, and the command's own options."""
        make = _defined(path)
        function = _inline(_section(_parameters(make), inspect.getdoc(make)))
        if wants_help and _missing(make, words):
            self._exit_with_help(path, 0, ("arguments", function))
        parsed, unknown = self._known(path, words, ("arguments", function))
        config = make(**vars(parsed.arguments))
        if not isinstance(config, self.kinds):
            name, command = type(config).__name__, getattr(config, "command", "launch.train")
            raise ConfigError(f"{path} makes a {name}; use python -m {command}")
        if unknown or wants_help:
            fields = _inline(
                _section([*_fields(config, vars(parsed.arguments))], type(config).__doc__)
            )
            sections = [("arguments", function, parsed.arguments), ("fields", fields)]
            if wants_help:
                self._exit_with_help(path, 0, *sections)
            config = _replaced(config, self._parse(path, words, sections).fields)
        return config, *(getattr(parsed, name) for name, *_ in self._own())

    def _own(self) -> list[Field]:
        return [(f"command_{i}", _inline(one), one()) for i, one in enumerate(self.options)]

    def _known(self, path: str, words: list[str], *sections: Field) -> tuple[Any, list[str]]:
        """The sections, and the words that belong to none of them."""
        return self._parse(path, words, sections, return_unknown_args=True)

    def _exit_with_help(self, path: str, code: int, *sections: Field) -> NoReturn:
        with contextlib.suppress(SystemExit):
            self._parse(path, ["--help"], sections)
        raise SystemExit(code)

    def _parse(self, path: str, words: list[str], sections: Sequence[Field], **how: Any) -> Any:
        command = getattr(self.kinds[-1], "command", "")
        return tyro.cli(
            _section([*self._own(), *sections], self.usage),
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


def _inline(section: type) -> Any:
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


def _parameters(make: Any) -> list[Field]:
    parameters = inspect.signature(make, eval_str=True).parameters.values()
    return [
        (p.name, p.annotation) if p.default is p.empty else (p.name, p.annotation, p.default)
        for p in parameters
    ]


def _missing(make: Any, words: list[str]) -> bool:
    """Whether an argument without a default is not given."""
    given = {_option(word) for word in words}
    return any(
        len(field) == 2 and _option(f"--{field[0]}") not in given for field in _parameters(make)
    )


def _fields(config: Any, arguments: Collection[str]) -> Iterator[Field]:
    """What can be set of a config, except a field, not a section, with the name of one of the arguments."""
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_named(value):
            for i, one in enumerate(value):
                yield f"{field.name}_{i}", Annotated[type(one), tyro.conf.arg(name=one.name)], one
        elif field.init and (field.name not in arguments or dataclasses.is_dataclass(value)):
            yield field.name, kinds[field.name], value


def _replaced(config: Any, section: Any) -> Any:
    """The config with the values of a section made of its `_fields`."""
    values = dict(vars(section))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_named(value):
            values[field.name] = tuple(values.pop(f"{field.name}_{i}") for i in range(len(value)))
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
