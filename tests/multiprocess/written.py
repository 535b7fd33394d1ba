"""What a model writes after questions: python written.py FOLDER TEXT OUT DATA SEQUENCE, with the flags of a cluster.

Process 0 leaves the tokens of each answer in OUT, as JSON.
"""

import json
import pathlib
import sys

import jax

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.ruler.scoring import write
from hypenet_jax.evals.ruler.tasks import TASKS, questions
from hypenet_jax.evals.ruler.text import Haystacks, sentences_of
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh
from hypenet_jax.weights import load_hf

LENGTH, TASK = 900, "niah_single_1"


def main(folder: str, text: str, out: str, data: str, sequence: str) -> None:
    mesh = make_mesh(MeshConfig(data=int(data), fsdp=1, sequence=int(sequence)))
    tokenizer = load_tokenizer(pathlib.Path(folder))
    haystacks = Haystacks(tokenizer, tokenizer.encode_all(sentences_of(text)))
    prompts = [
        asked.tokens[start:]
        for start, asked in enumerate(questions(TASK, haystacks, LENGTH, count=5, seed=0))
    ]
    subject = EvalModel("student", *load_hf(folder, mesh=mesh))
    with on_mesh(mesh):
        found = write(subject, prompts, LENGTH, TASKS[TASK].budget, stop=(tokenizer.end_id,))
    if jax.process_index() == 0:
        pathlib.Path(out).write_text(json.dumps([row.tolist() for row in found]))


if __name__ == "__main__":
    with runtime.main_guard({}):
        cluster, words = runtime.take_cluster(sys.argv[1:])
        runtime.join_processes(cluster)
        main(*words)
