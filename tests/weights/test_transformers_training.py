"""The Trainer of transformers trains an exported student, with our gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_students import HYBRID, export, random_tokens

from hypenet_jax.weights.names import flatten, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LENGTHS = (30, 41, 1, 28)


def our_gradients(pair, tokens: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross entropy of the next tokens of the same document, by the names of the checkpoint."""
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]).astype(np.float32)

    tokens = jnp.asarray(tokens)

    def loss(params):
        apply = pair.decoder.apply
        hidden = apply({"params": params}, tokens, segment_ids=jnp.asarray(segment_ids)).hidden
        logits = apply({"params": params}, hidden[:, :-1], method="logits")
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
        return -jnp.sum(picked[..., 0] * same) / same.sum()

    gradients = flatten(jax.jit(jax.grad(loss))(pair.params))
    return {t.theirs: np.asarray(t.to_theirs(gradients[t.ours])) for t in tensors(HYBRID)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_the_trainer_moves_along_our_gradients(tmp_path, checkpointing, monkeypatch):
    pair, tokens = export(tmp_path / "hf", HYBRID), random_tokens(1, sum(LENGTHS))
    before = {name: p.detach().clone() for name, p in pair.theirs.named_parameters()}
    documents = np.split(tokens[0], np.cumsum(LENGTHS)[:-1])
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        per_device_train_batch_size=len(LENGTHS),
        max_steps=1,
        learning_rate=1.0,
        max_grad_norm=1e9,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        pair.theirs,
        arguments,
        train_dataset=[{"input_ids": row.tolist()} for row in documents],
        data_collator=transformers.DataCollatorWithFlattening(),
        optimizers=(torch.optim.SGD(pair.theirs.parameters(), lr=1.0), None),
    )
    monkeypatch.setattr(
        trainer, "_get_train_sampler", lambda *_: torch.utils.data.SequentialSampler(documents)
    )
    trainer.train()
    segment_ids = np.repeat(np.arange(1, 5), LENGTHS)[None]
    expected = our_gradients(pair, tokens, segment_ids)
    for name, parameter in pair.theirs.named_parameters():
        moved = (before[name] - parameter.detach()).numpy()
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            moved, expected[name], rtol=0, atol=1e-4 * scale + 1e-6, err_msg=name
        )
