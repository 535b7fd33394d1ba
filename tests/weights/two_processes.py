"""One of two processes: reads a folder, sharded over both, and writes it again.

python two_processes.py PORT PROCESS SOURCE TARGET
"""

import sys

import jax

from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.weights import read_hf, save_hf


def main(port: str, process: str, source: str, target: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    read = {}
    jax.monitoring.register_scalar_listener(
        lambda event, value, **_: read.update({event: read.get(event, 0) + value})
    )
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=4))
    config, params = read_hf(source, mesh=mesh)
    save_hf(target, config, params, dtype="float32", max_shard_bytes=100_000)
    print("bytes", int(read["/jax/orbax/read/safetensors/bytes_read"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
