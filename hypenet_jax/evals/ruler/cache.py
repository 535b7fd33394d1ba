"""Questions kept on disk: made once for a task, length, seed, tokenizer and text, and read back from then on."""

import hashlib
import json
import logging
import os
import pathlib
import tempfile
import zipfile

import numpy as np

from hypenet_jax.evals.ruler.tasks import questions
from hypenet_jax.evals.ruler.text import Haystacks, Question

log = logging.getLogger("hypenet_jax")

# Raised whenever the questions of a seed change.
VERSION = 1


def cached_questions(
    task: str,
    haystacks: Haystacks,
    length: int,
    *,
    count: int,
    seed: int,
    folder: str | os.PathLike[str] | None,
) -> list[Question]:
    """`questions`, from the folder where they are there, else made and kept there; folder None keeps nothing.

    A file is whole or not there. One that cannot be read is made again.
    """
    settings = {"version": VERSION, "task": task, "length": length, "count": count, "seed": seed}
    if folder is None:
        return questions(task, haystacks, length, count=count, seed=seed)
    path = pathlib.Path(folder) / f"{task}-{length}-{_digest(settings, haystacks)}.npz"
    if path.is_file():
        try:
            return _read(path)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s); its questions are made again", path, error)
    made = questions(task, haystacks, length, count=count, seed=seed)
    _write(path, made, settings)
    return made


def _digest(settings: dict[str, str | int], haystacks: Haystacks) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(haystacks.tokenizer.fingerprint.encode())
    for sentence in haystacks.sentences:
        digest.update(np.asarray(sentence, np.int32).tobytes())
    return digest.hexdigest()[:16]


def _write(path: pathlib.Path, made: list[Question], settings: dict[str, str | int]) -> None:
    metadata = {
        **settings,
        "answers": [question.answers for question in made],
        "depths": [question.depth for question in made],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(
            file,
            tokens=np.concatenate([question.tokens for question in made]),
            lengths=np.asarray([len(question.tokens) for question in made]),
            metadata=np.frombuffer(json.dumps(metadata).encode(), np.uint8),
        )
    os.replace(file.name, path)


def _read(path: pathlib.Path) -> list[Question]:
    with np.load(path, allow_pickle=False) as file:
        metadata = json.loads(file["metadata"].tobytes())
        rows = np.split(file["tokens"], np.cumsum(file["lengths"])[:-1])
    answers = map(tuple, metadata["answers"])
    return [Question(*parts) for parts in zip(rows, answers, metadata["depths"], strict=True)]
