"""What a model writes after questions: python written.py FOLDER TEXT OUT DATA SEQUENCE, with the flags of a cluster.

Process 0 leaves the tokens of each answer in OUT, as JSON.
"""

import json
import pathlib
import sys

import jax
import tyro

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.ruler.tasks import TASKS, questions
from hypenet_jax.evals.ruler.text import Haystacks, sentences_of
from hypenet_jax.generation.generate import GenerationConfig, generate_batches
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
    decoder, params = load_hf(folder, mesh=mesh)
    budget = TASKS[TASK].budget
    config = GenerationConfig(
        max_new_tokens=budget, max_length=LENGTH, stop_tokens=(tokenizer.end_id,)
    )
    with on_mesh(mesh):
        batches = generate_batches(decoder, params, prompts, config, width=LENGTH - budget)
        written = {row: result for batch in batches for row, result in batch.items()}
    if jax.process_index() == 0:
        pathlib.Path(out).write_text(
            json.dumps([written[i].tokens.tolist() for i in range(len(prompts))])
        )


if __name__ == "__main__":
    with runtime.main_guard({}):
        cluster, words = tyro.cli(runtime.Cluster, args=sys.argv[1:], return_unknown_args=True)
        runtime.join_processes(cluster)
        main(*words)
