"""transformers loads the student of 20 steps by the code in its folder, and writes what we write."""

import numpy as np
import pytest
from recorded import QUESTION, WRITTEN

from hypenet_jax.generation import generate
from hypenet_jax.weights import load_hf

torch = pytest.importorskip("torch", reason="PyTorch is not installed; `make install-torch` does")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_it_writes_the_greedy_text_that_we_write(trained):
    folder = trained.config.stage("distill").hf_folder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    asked = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(QUESTION, **asked)
    options = {"max_new_tokens": WRITTEN, "do_sample": False, "eos_token_id": None}
    written = theirs.generate(**prompt, **options)
    tokens = prompt["input_ids"].numpy().astype(np.int32)
    ours = generate(*load_hf(folder), tokens, max_new_tokens=WRITTEN)
    assert tokenizer.decode(ours[0]) == tokenizer.decode(written[0, tokens.shape[1] :])
