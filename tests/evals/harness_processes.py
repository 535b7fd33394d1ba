"""One of some processes that evaluate a folder by the harness together; the first prints the report.

python harness_processes.py PORT PROCESSES PROCESS FOLDER DATA_PARTS [TASK ...]
"""

import sys

import jax
import jax.numpy as jnp
from harness_folder import local_tasks

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.harness.evaluator import HarnessEvaluator
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh
from hypenet_jax.weights import load_hf


def main(port: str, count: str, process: str, folder: str, data: str, *tasks: str) -> None:
    jax.config.update("jax_num_cpu_devices", 4 // int(count))
    cluster = runtime.Cluster(
        coordinator=f"127.0.0.1:{port}", num_processes=int(count), process_id=int(process)
    )
    runtime.join_processes(cluster)
    mesh = make_mesh(MeshConfig(data=int(data)))
    weights = load_hf(folder, dtype=jnp.float32, mesh=mesh)
    model = EvalModel("tiny", *weights, load_tokenizer(folder))
    with on_mesh(mesh):
        report = HarnessEvaluator(max_length=64).measure(model, tasks or local_tasks())
    print("report", process, report.to_json_lines(), sep="\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
