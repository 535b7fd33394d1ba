"""Whose weights a stage writes, and whether this very stage has written them before."""

import pathlib

from hypenet_jax import runtime
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import resolved
from hypenet_jax.convert.models import TEACHER, teacher_fingerprint
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.train.provenance import Provenance, check_provenance
from hypenet_jax.train.stage_output import StageOutput, read_stage_output

# Beside the settings in what a stage writes: the fingerprint of the text that it read.
TEXT = "text_fingerprint"

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
    config: StageConfig, parent: str | None, teacher: str | None, text: str | None
) -> Provenance:
    """The settings of a stage, the weights that it starts from, and those of its teacher and text."""
    settings = {**resolved(config), TEACHER: teacher, TEXT: text}
    return Provenance(config.name, settings, parent, RESUMABLE_FIELDS)


def is_done(config: StageConfig) -> bool:
    """Whether this very stage has left its final weights.

    Raises:
      CheckpointError: another config has, or it started from other weights or read another text than those of now.
    """
    final = config.folder / "final"
    exists = final.exists()
    # Hosts that do not see the same folder would wait for each other.
    runtime.check_agreement(final_weights=exists)
    if not exists:
        return False
    output = read_stage_output(final, config.name)
    metadata = {"stage": output.stage, "config": output.config, "parent": output.parent}
    # A teacher or a text that is gone cannot have changed.
    teacher = teacher_fingerprint(config) or output.config.get(TEACHER)
    text = _text_of(config) or output.config.get(TEXT)
    now = provenance_of(config, _parent_of(config, output), teacher, text)
    check_provenance(metadata, now, str(final))
    return True


def _text_of(config: StageConfig) -> str | None:
    """Fingerprint of the text that was prepared for the stage; None where that is gone."""
    folder = pathlib.Path(config.data.corpus.folder)
    exists = (folder / "manifest.json").is_file()
    return open_prepared(folder).text_fingerprint if exists else None


def _parent_of(config: StageConfig, output: StageOutput) -> str | None:
    """Fingerprint of the weights that the stage would start from; the noted one where they are gone."""
    name = config.method.start_from
    if name is None or not config.final_of(name).exists():
        return output.parent
    return read_stage_output(config.final_of(name), name).fingerprint
