"""Process 1 of two fails while process 0 waits for it: python fails_alone.py, with the flags of a cluster."""

import sys

import tyro

from hypenet_jax import runtime

if __name__ == "__main__":
    with runtime.main_guard({OSError: runtime.BAD_DATA}):
        cluster, _ = tyro.cli(runtime.Cluster, args=sys.argv[1:], return_unknown_args=True)
        runtime.join_processes(cluster)
        runtime.meet("both are here")
        if cluster.process_id == 1:
            raise OSError("one disk")
        runtime.meet("what process 1 does not reach")
