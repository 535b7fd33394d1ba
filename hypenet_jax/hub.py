"""Models by the name that they have on the hub, where the local cache of Hugging Face holds them.

Nothing is ever downloaded here: a name that is not in the cache is answered with the command that brings it.
"""

import os
import pathlib
import re

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:/[\w.-]+)*))?")
IN_THE_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def model_folder(model: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a model: a path as it is, or that of a name in the cache.

    Args:
      model: a path; or `org/name` or `org/name@revision` (a branch, tag or commit; else main). What lies at that path
        wins over the name. The cache is where `HF_HOME` or `HF_HUB_CACHE` says.
    Raises:
      FileNotFoundError: neither there nor in the cache, with the command that downloads it.
    """
    path, name = pathlib.Path(model), NAME.fullmatch(os.fspath(model))
    if name is None or path.exists():
        return path
    repo, revision = name.groups()
    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        return path
    if isinstance(found, str):
        return pathlib.Path(found).parent
    raise FileNotFoundError(
        f"{model} is no folder here, and no model in the local cache of Hugging Face; to download it: "
        f"{_download(repo, revision)}"
    )


def cached_name(folder: str | os.PathLike[str]) -> str | None:
    """org/name of a folder in the cache; None of any other folder."""
    for part in pathlib.Path(folder).resolve().parts:
        if found := IN_THE_CACHE.fullmatch(part):
            return "/".join(found.groups())
    return None


def completion_hint(folder: str | os.PathLike[str]) -> str:
    """For the end of a message that a file is absent: how to complete a folder of the cache."""
    name, revision = cached_name(folder), pathlib.Path(folder).name
    return "" if name is None else f"; to complete the download: {_download(name, revision)}"


def _download(name: str, revision: str | None) -> str:
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")
