"""A whole conversion in minutes on two CPU cores:  python -m launch.halo configs/quickstart.py

A small Qwen3 teacher is trained on the running interpreter's standard library and saved as a Hugging Face folder;
from there on it goes as with any downloaded Qwen3. The retrieval task is synthetic: entries of a catalogue are planted
in the text and asked for at its end. It was chosen because a tiny model learns it in seconds.
"""

from hypenet_jax.config import HaloConfig, RunConfig, StudentConfig, TrainingConfig
from hypenet_jax.data import (
    Catalogue,
    CorpusConfig,
    DataConfig,
    NeedleRows,
    TextFiles,
    TokenizerFile,
    TrainedTokenizer,
    standard_library,
    tokens_after,
)
from hypenet_jax.evals.config import Bound, Candidate, EvaluateConfig
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

TEXT_VOCABULARY = 1024  # a bigger one only makes the logits dearer
CATALOGUE = Catalogue(first_id=TEXT_VOCABULARY)
TRAINED_LENGTH = 128  # stages 1 and 2
LONG_LENGTH = 512  # stage 3
LENGTHS = (128, 256, 512, 1024, 2048, 4096)

TEACHER = ModelConfig(
    vocab_size=TEXT_VOCABULARY + CATALOGUE.num_ids,
    d_model=128,
    d_mlp=384,
    mixers=(SoftmaxSpec(num_heads=4, num_kv_heads=2, head_dim=32, rope_theta=1e4),) * 4,
    tie_embeddings=True,
)


def needles(row_fraction: float) -> NeedleRows:
    """4 to 8 needles and 8 questions in this share of the rows; answers weigh four times an ordinary token."""
    return NeedleRows(CATALOGUE, row_fraction, min_needles=4, max_needles=8, queries=8)


def training(
    steps: int, peak_lr: float, final_lr: float, *, warmup: int = 20, weight_decay: float = 0.0
) -> TrainingConfig:
    return TrainingConfig(
        OptimizerConfig(peak_lr, final_lr, warmup, steps, weight_decay=weight_decay),
        LoopConfig(steps, accumulate=1, checkpoint_every=50),
        dtype="float32",
    )


def config(
    run_dir: str = "runs/quickstart",
    seed: int = 0,
    data: str = standard_library().folder,
    teacher: str | None = None,
) -> HaloConfig:
    """A whole conversion of a small teacher on two CPU cores.

    Args:
      run_dir: where everything goes.
      seed: of the models and of the order of the data.
      data: folder of Python files to read.
      teacher: Hugging Face folder of a teacher that an earlier quickstart made; None trains one.
    """
    source = TextFiles(data, standard_library().patterns, standard_library().exclude)
    tokenizer = (
        TrainedTokenizer(TEXT_VOCABULARY, CATALOGUE.token_names())
        if teacher is None
        else TokenizerFile(teacher)
    )
    corpus = CorpusConfig(f"{run_dir}/data", source, tokenizer, LONG_LENGTH, 0.05, seed=0)
    teacher_folder = teacher or f"{run_dir}/teacher/hf"

    def rows(length: int, rows: int, first: int, share: float) -> DataConfig:
        return DataConfig(corpus, length, rows, first, seed, needles=needles(share))

    def run(name, stage, data, training, student, export=None):
        made = teacher_folder if student is not None or name in ("align", "select") else None
        return RunConfig(
            name, run_dir, TEACHER, made, student, stage, data, training, MeshConfig(), seed, export
        )

    short_text = rows(64, 32, 0, 0.75)
    short_steps, teacher_steps, align_steps, distill_steps, finetune_steps = 120, 250, 150, 200, 60
    teacher_text = rows(TRAINED_LENGTH, 24, tokens_after(short_text, short_steps), 0.5)
    align_text = rows(TRAINED_LENGTH, 16, tokens_after(teacher_text, teacher_steps), 0.5)
    distill_text = rows(TRAINED_LENGTH, 16, tokens_after(align_text, align_steps), 0.5)
    finetune_text = rows(LONG_LENGTH, 4, tokens_after(distill_text, distill_steps), 0.5)

    # Sharper attention and quiet outputs at the start: the retrieval head forms within a hundred steps.
    start = Initialization(std=0.088, embedding_std=0.1, output_gain=0.1, query_norm=2.0)
    selected = StudentConfig(None, "select", logit_scale=float(TRAINED_LENGTH))
    with_rope = StudentConfig(None, "select", rope_in_softmax=True)
    recurrent = StudentConfig(())
    distill = DistillConfig("align")
    runs = (
        run(
            "teacher_short",
            FinetuneConfig(None, start),
            short_text,
            training(short_steps, 3e-3, 3e-3, warmup=50, weight_decay=0.1),
            None,
        ),
        run(
            "teacher",
            FinetuneConfig("teacher_short"),
            teacher_text,
            training(teacher_steps, 1.8e-3, 1e-4, weight_decay=0.1),
            None,
            "float32",
        ),
        run("align", AlignConfig(), align_text, training(align_steps, 1e-3, 1e-5), None),
        run("select", SelectConfig("align", keep=1, rows=96, eps=0.01), align_text, None, None),
        run("distill", distill, distill_text, training(distill_steps, 1e-3, 1e-5), selected),
        run(
            "finetune",
            FinetuneConfig("distill"),
            finetune_text,
            training(finetune_steps, 3e-4, 3e-5),
            selected,
            "float32",
        ),
        run("rope_distill", distill, distill_text, training(distill_steps, 1e-3, 1e-5), with_rope),
        run("recurrent_distill", distill, distill_text, training(100, 1e-3, 1e-5), recurrent),
    )
    return HaloConfig(run_dir, runs if teacher is None else runs[2:], evaluation())


def evaluation() -> EvaluateConfig:
    """What the report measures and what it must find."""
    return EvaluateConfig(
        candidates=(
            Candidate("teacher", None, LENGTHS, reads=True, races=True),
            Candidate("HypeNet", "finetune", LENGTHS, reads=True, races=True),
            Candidate(
                "HypeNet, log scaling", "finetune", LENGTHS, float(TRAINED_LENGTH), reads=True
            ),
            Candidate("RoPE kept", "rope_distill", LENGTHS, reads=True),
            Candidate("recurrent only", "recurrent_distill", LENGTHS, reads=True),
            Candidate("HypeNet, stage 2", "distill", (128,)),
        ),
        student="HypeNet",
        catalogue=CATALOGUE,
        needles=4,
        sequences=96,
        long_sequences=40,
        long_length=1024,
        read_lengths=LENGTHS,
        read_windows=24,
        read_targets=64,
        race_lengths=(1024, 2048, 4096, 8192),
        heldout_rows=192,
        prompts=("def __init__(self", "import "),
        sample_tokens=24,
        bounds=(
            Bound("needle", "teacher", TRAINED_LENGTH, at_least=0.97),
            Bound("alignment_error_drop", "align", at_least=0.5),
            Bound("alignment_error_worst", "align", at_most=0.45),
            Bound("heldout_kl", "HypeNet, stage 2", TRAINED_LENGTH, at_most=0.12),
            Bound("perplexity_gap", "HypeNet, stage 2", at_most=0.15),
            Bound("needle", "recurrent only", TRAINED_LENGTH, at_most=0.75),
            Bound("needle", "HypeNet", 2048, at_least=0.9),
            Bound("needle", "teacher", 2048, at_most=0.4),
            Bound("needle", "RoPE kept", 2048, at_most=0.45),
            Bound("needle_gain", "HypeNet, log scaling", 4096, at_least=0.0),
            Bound("prefill_speedup", "HypeNet", 8192, at_least=3.0),
            Bound("decode_speedup", "HypeNet", 8192, at_least=2.0),
        ),
    )
