"""A context on disk: what one process has read, another continues."""

from os import PathLike
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import args

from hypenet_jax.generation.prefill import Context, start_context
from hypenet_jax.model.decoder import Decoder


def save_context(folder: str | PathLike[str], decoder: Decoder, context: Context) -> None:
    """Writes a context with all the room of its caches; `with_capacity` cuts them to what they hold.

    Raises:
      FileExistsError: the folder is there already.
    """
    path = epath.Path(folder).absolute()
    if path.exists():
        raise FileExistsError(f"{path} is there already; name a new folder or remove this one")
    batch, capacity = context.state.cache_position.slot_segment_ids.shape
    metadata = {"model": repr(decoder.config), "batch": batch, "capacity": capacity}
    items = args.Composite(context=args.StandardSave(context), metadata=args.JsonSave(metadata))
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=items)


def load_context(folder: str | PathLike[str], decoder: Decoder) -> Context:
    """What `save_context` wrote, for a decoder of the same config, on this process's first device.

    Caches take the decoder's dtype. That the parameters are the same is the caller's care.

    Raises:
      FileNotFoundError: no context is there.
      ValueError: a model of another config read it.
    """
    path = epath.Path(folder).absolute()
    if not (path / "metadata").exists():
        raise FileNotFoundError(f"{path} holds no context; write one with save_context")
    metadata = _read(path, metadata=args.JsonRestore())["metadata"]
    if metadata["model"] != repr(decoder.config):
        raise ValueError(
            f"{path} was read by {metadata['model']}, this is {decoder.config}; read the text again"
        )
    local = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: start_context(decoder, metadata["batch"], metadata["capacity"]))
    shapes = jax.tree.map(lambda x: x.update(sharding=local), shapes)
    return _read(path, context=args.StandardRestore(shapes))["context"]


def _read(path: epath.Path, **items: Any) -> Any:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=args.Composite(**items))


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler("context", "metadata"))
