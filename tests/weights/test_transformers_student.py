"""transformers runs an exported student by the code in its folder, and computes what we do."""

import copy

import numpy as np
import pytest
from torch_students import HYBRID, STUDENTS, export, random_tokens

from hypenet_jax.generation import generate
from hypenet_jax.testing import tiny_student_folder, tiny_tokenizer
from hypenet_jax.weights import load_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return export(tmp_path_factory.mktemp("hybrid") / "hf", HYBRID)


def logits(pair, tokens, **arguments):
    tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with torch.no_grad():
        return pair.theirs(torch.tensor(tokens), **tensors)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", STUDENTS)
def test_logits_are_ours(tmp_path, name):
    pair, tokens = export(tmp_path / "hf", STUDENTS[name]), random_tokens(2, 150)
    assert_close(logits(pair, tokens).logits, pair.ours(tokens))


def segments(*lengths: int) -> np.ndarray:
    """The documents of a row; a negative length is padding."""
    return np.concatenate([np.full(abs(n), 0 if n < 0 else i + 1) for i, n in enumerate(lengths)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_positions", [False, True])
def test_padded_rows_are_each_row_alone(hybrid, side, with_positions):
    sign = 1 if side == "left" else -1
    rows = [segments(*(-(80 - n), n)[::sign]) for n in (80, 71, 3)]
    tokens, mask = random_tokens(3, 80), (np.stack(rows) != 0).astype(np.int64)
    positions = {"position_ids": np.maximum(mask.cumsum(1) - 1, 0)} if with_positions else {}
    theirs = logits(hybrid, tokens, attention_mask=mask, **positions).logits.numpy()
    assert np.isfinite(theirs).all()
    for row, real in enumerate(mask.astype(bool)):
        assert_close(theirs[row, real], hybrid.ours(tokens[row : row + 1, real])[0])


def test_a_position_that_does_not_go_on_starts_a_document(hybrid):
    tokens, packed = random_tokens(2, 140), np.stack([segments(70, 1, 69), segments(3, 130, 7)])
    starts = [
        np.concatenate([np.arange(n) for n in lengths]) for lengths in ((70, 1, 69), (3, 130, 7))
    ]
    theirs = logits(hybrid, tokens, position_ids=np.stack(starts)).logits
    assert_close(theirs, hybrid.ours(tokens, segment_ids=packed))


def test_documents_of_the_packing_collator_do_not_see_each_other(hybrid):
    tokens = random_tokens(1, 90)[0]
    rows = [{"input_ids": part.tolist()} for part in np.split(tokens, [20, 21])]
    batch = transformers.DataCollatorWithFlattening()(rows)
    with torch.no_grad():
        theirs = hybrid.theirs(**batch).logits[0]
    for part, row in zip(
        torch.tensor_split(theirs, [20, 21]), np.split(tokens, [20, 21]), strict=True
    ):
        assert_close(part, hybrid.ours(row[None])[0])


@pytest.mark.parametrize("parts", [(1, 1, 88), (64, 26), (70, *[1] * 20)])
def test_reading_in_parts_is_reading_at_once(hybrid, parts):
    tokens = random_tokens(2, 90)
    rows = [segments(-5, 85), segments(90)]
    mask = (np.stack(rows) != 0).astype(np.int64)
    whole = logits(hybrid, tokens, attention_mask=mask).logits
    for given in ({"attention_mask": mask}, {}):
        read, cache, expected = 0, None, whole if given else logits(hybrid, tokens).logits
        for part in parts:
            here = slice(read, read + part)
            seen = {k: v[:, : read + part] for k, v in given.items()}
            out = logits(hybrid, tokens[:, here], past_key_values=cache, use_cache=True, **seen)
            read, cache = read + part, out.past_key_values
            real = mask[:, here].astype(bool) if given else slice(None)
            assert_close(out.logits[real], expected[:, here][real])
        assert cache.get_seq_length() == 90


def test_a_document_can_start_between_two_calls(hybrid):
    tokens, positions = random_tokens(1, 40), np.concatenate([np.arange(25), np.arange(15)])[None]
    first = logits(hybrid, tokens[:, :25], use_cache=True)
    rest = logits(
        hybrid,
        tokens[:, 25:],
        position_ids=positions[:, 25:],
        past_key_values=first.past_key_values,
    )
    assert_close(rest.logits, hybrid.ours(tokens[:, 25:]))


def test_generate_writes_the_tokens_that_we_write(hybrid):
    tokens, mask = random_tokens(2, 12), np.stack([segments(-4, 8), segments(12)])
    theirs = hybrid.theirs.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor((mask != 0).astype(np.int64)),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )
    ours = generate(
        hybrid.decoder, hybrid.params, tokens, max_new_tokens=8, segment_ids=mask.astype(np.int32)
    )
    np.testing.assert_array_equal(theirs[:, 12:], ours)


def test_beams_take_their_rows_of_the_cache_along(hybrid):
    tokens = torch.tensor(random_tokens(2, 9))
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with_cache = hybrid.theirs.generate(tokens, **options)
    without = hybrid.theirs.generate(tokens, use_cache=False, **options)
    assert torch.equal(with_cache, without)


def test_hidden_states_are_those_before_every_layer_and_the_last(hybrid):
    out = logits(hybrid, random_tokens(1, 5), output_hidden_states=True)
    assert len(out.hidden_states) == len(HYBRID.mixers) + 1
    assert_close(hybrid.theirs.lm_head(out.hidden_states[-1]).detach(), out.logits)


def test_under_autocast_the_recurrence_stays_float32(hybrid):
    tokens = random_tokens(1, 70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logits(hybrid, tokens, use_cache=True)
    assert {t.dtype for t in out.past_key_values.tensors[0]} == {torch.float32}
    exact = hybrid.ours(tokens)
    assert np.abs(out.logits.float().numpy() - exact).mean() < 0.05 * np.abs(exact).mean()


def test_what_transformers_saves_is_read_here_and_there(hybrid, tmp_path):
    hybrid.theirs.save_pretrained(tmp_path / "saved")
    decoder, params = load_hf(tmp_path / "saved")
    assert decoder.config == HYBRID
    for name, tree in hybrid.params.items():
        assert name in params, name
        assert tree.keys() == params[name].keys()
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", trust_remote_code=True
    )
    tokens = torch.tensor(random_tokens(1, 9))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, hybrid.theirs(tokens).logits)


def test_what_cannot_be_computed_is_refused_by_name(hybrid):
    tokens = torch.tensor(random_tokens(1, 4))
    with pytest.raises(TypeError, match="DynamicCache"):
        hybrid.theirs(tokens, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="attention_mask"):
        hybrid.theirs(tokens, attention_mask=torch.ones(1, 1, 4, 4))
    cache = hybrid.theirs(tokens, use_cache=True).past_key_values
    with pytest.raises(NotImplementedError, match="forget"):
        cache.crop(-1)
    fields = hybrid.theirs.config.to_dict()
    changes = {
        "mixer_types": ["lightning-attn", *["mamba2"] * 3],
        "lightning_scale": "d",
        "attn_logits_scaling": "log",
        "attn_sqrtd": False,
    }
    with pytest.raises(ValueError, match="cannot be computed") as error:
        type(hybrid.theirs.config)(**{**fields, **changes})
    for word in ("mamba2", "lightning_scale", "attn_logits_scaling", "attn_sqrtd"):
        assert word in str(error.value)


def test_the_tokenizer_of_the_folder_loads_with_its_chat_template(tmp_path):
    folder, template = tiny_student_folder(tmp_path / "hf"), "{{ messages[0]['content'] }}!"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "the lazy dog"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer().encode(text).tolist()
    messages = [{"role": "user", "content": text}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text + "!"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_computes_the_same(hybrid):
    tokens, mask = torch.tensor(random_tokens(2, 90)), torch.ones(2, 90, dtype=torch.long)
    mask[0, :7] = 0
    theirs = copy.deepcopy(hybrid.theirs).cuda()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    here = hybrid.theirs.generate(tokens, attention_mask=mask, **options)
    there = theirs.generate(tokens.cuda(), attention_mask=mask.cuda(), **options)
    assert torch.equal(here, there.cpu())
    with torch.no_grad():
        assert_close(theirs(tokens.cuda()).logits.cpu(), hybrid.ours(tokens.numpy()))
