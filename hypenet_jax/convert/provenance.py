"""Whose weights a stage writes, and whether this very stage has written them before."""

import concurrent.futures
import contextlib
import functools
import hashlib
import pathlib

import jax

from hypenet_jax import runtime
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import resolved
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.fingerprint import digest
from hypenet_jax.hub import model_folder
from hypenet_jax.train.provenance import Provenance, check_provenance
from hypenet_jax.train.stage_output import read_stage_output
from hypenet_jax.weights.shards import find_tensors

# Beside the settings in what a stage writes: the fingerprints of the teacher, the text and the files that it read.
TEACHER, TEXT, FILES = "teacher_weights", "text_fingerprint", "files_fingerprint"

# What may change between two starts of one stage: where things lie, and how often they are saved.
RESUMABLE_FIELDS = (
    "run_dir",
    "teacher_folder",
    "mesh",
    "data.corpus.folder",
    "training.loop",
    "training.tensorboard",
    "training.neighbor_exchange",
)


def provenance_of(
    config: StageConfig,
    parent: str | None,
    teacher: str | None,
    text: str | None,
    files: str | None = None,
) -> Provenance:
    """The settings of a stage, and fingerprints: of the weights that it starts from, its teacher, text and files."""
    read = {} if files is None else {FILES: files}
    settings = {**resolved(config), TEACHER: teacher, TEXT: text, **read}
    return Provenance(config.name, settings, parent, RESUMABLE_FIELDS)


def is_done(config: StageConfig) -> bool:
    """Whether this very stage has left its final weights.

    Raises:
      CheckpointError: another config has, or it started from other weights or read another text than those of now.
    """
    final, start_from = config.folder / "final", config.method.start_from
    exists = final.exists()
    # Hosts that do not see the same folder would wait for each other.
    runtime.check_agreement(final_weights=exists)
    if not exists:
        return False
    written = read_stage_output(final, config.name)
    # Weights, a teacher or a text that are gone cannot have changed.
    parent, text = written["parent"], written["config"].get(TEXT)
    if start_from is not None and config.final_of(start_from).exists():
        parent = read_stage_output(config.final_of(start_from), start_from)["fingerprint"]
    if (pathlib.Path(config.data.corpus.folder) / "manifest.json").is_file():
        text = open_prepared(config.data.corpus.folder).text_fingerprint
    teacher = teacher_fingerprint(config) or written["config"].get(TEACHER)
    files = files_fingerprint(config) or written["config"].get(FILES)
    check_provenance(written, provenance_of(config, parent, teacher, text, files), final)
    return True


def files_fingerprint(config: StageConfig) -> str | None:
    """Hash over the files that the method reads, all of a folder; None where it reads none, or one is gone."""
    paths = [pathlib.Path(name) for name in config.method.files]
    if not paths or not runtime.broadcast(all(path.exists() for path in paths)):
        return None
    found: list[pathlib.Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return runtime.broadcast(_hash_of(found) if jax.process_index() == 0 else None)


def teacher_fingerprint(config: StageConfig) -> str | None:
    """Hash over the weight files of the teacher that this stage reads, those that process 0 sees; None where it reads
    none, or its folder is gone.

    Raises:
      CheckpointError: the folder is not a whole model.
    """
    if config.teacher_folder is None or not config.method.reads_teacher:
        return None
    first, files = jax.process_index() == 0, ()
    with contextlib.suppress(FileNotFoundError):  # of a name that is not in the cache any more
        folder = model_folder(config.teacher_folder).absolute()
        # Only headers are read everywhere: a damaged folder ends all processes alike.
        files = {tensor.file for tensor in find_tensors(folder).values()} if folder.is_dir() else ()
    return runtime.broadcast(_hash_of(sorted(files)) if first and files else None)


def _hash_of(files: list[pathlib.Path]) -> str:
    versions = [(stat.st_size, stat.st_mtime_ns) for stat in map(pathlib.Path.stat, files)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return digest([*threads.map(_file_hash, files, versions)])


@functools.cache
def _file_hash(file: pathlib.Path, version: tuple[int, int]) -> str:
    """Read once by all stages of a chain, and again when it was written again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
