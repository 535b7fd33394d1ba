"""A context on disk: what one process has read, another continues."""

from os import PathLike

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

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
    made_for = {"model": repr(decoder.config), "batch": batch, "capacity": capacity}
    ocp.save(path, context, custom_metadata=made_for)


def load_context(folder: str | PathLike[str], decoder: Decoder) -> Context:
    """What `save_context` wrote, for a decoder of the same config, on this process's first device.

    Caches take the decoder's dtype. That the parameters are the same is the caller's care.

    Raises:
      FileNotFoundError: no context is there.
      ValueError: a model of another config read it.
    """
    path = epath.Path(folder).absolute()
    made_for = ocp.metadata(path).custom_metadata if ocp.is_orbax_checkpoint(path) else None
    if not isinstance(made_for, dict) or "model" not in made_for:
        raise FileNotFoundError(f"{path} holds no context; write one with save_context")
    if made_for["model"] != repr(decoder.config):
        raise ValueError(
            f"{path} was read by {made_for['model']}, this is {decoder.config}; read the text again"
        )
    local = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: start_context(decoder, made_for["batch"], made_for["capacity"]))
    return ocp.load(path, jax.tree.map(lambda x: x.update(sharding=local), shapes))
