"""The search for the constant a of the log-length logit scale, and writing the best into an exported model."""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from hypenet_jax import runtime
from hypenet_jax.evals.evaluator import Evaluator, Session
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report
from hypenet_jax.hub import cached_name
from hypenet_jax.weights import CheckpointError
from hypenet_jax.weights.hf_config import from_hf, read_json

log = logging.getLogger("hypenet_jax")

# The label of no scaling.
NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepEvaluator(Evaluator):
    """Measures a model with no scaling and with every constant a.

    Attributes:
      constants: values of a to try, in the order of preference; none leaves the search out.
      by: what is measured with each of them, at one length.
      metric: of its rows, which decides.
      maximize: whether more of it is better.
      write: put the best into the `config.json` of the model's folder.
    """

    constants: tuple[float, ...] = ()
    by: Evaluator
    metric: str
    maximize: bool = False
    write: bool = False

    needs: ClassVar = ("constants",)
    shown: ClassVar = (
        Presentation(
            metric="scale_sweep",
            title="The logit scale",
            note="What each value of attn_logits_scaling brings.",
            kind="list",
            best="scale_best",
        ),
    )

    @property
    def text_tokens(self) -> int:
        return self.by.text_tokens

    def check(self, models: Sequence[ModelSource]) -> None:
        """Refuses what `by` refuses and, where the best is to be written, folders without a logit scale."""
        self.by.check(models)
        for source in models if self.write else ():
            scaled_fields(source.path / "config.json")
            if cached_name(source.path) is not None:
                raise ValueError(
                    f"sweep.write would change {source.folder} in the cache of Hugging Face; copy it with "
                    f"python -m launch.convert {source.folder} FOLDER, and name the copy"
                )

    def run(self, model: EvalModel, session: Session) -> Report:
        """Rows "scale_sweep", whose task is the metric and whose label is the scale as a config.json writes it, and one
        row "scale_best" of the best; of equals the first one."""
        report = Report()
        for scale in (None, *(f"hype {a:g}" for a in self.constants)):
            log.info("evaluate: %s with logit scale %s", model.name, scale)
            result = self.by.run(model.scaled(scale), session.part(f"logit scale {scale}"))
            label = NONE if scale is None else scale
            rows = (
                dataclasses.replace(row, metric="scale_sweep", task=self.metric, label=label)
                for row in result.select(self.metric).rows
            )
            report += Report((*rows, *result.select("failed").rows))
        rows = report.select("scale_sweep").rows
        if not rows:
            return report
        best = min(rows, key=lambda row: -row.value if self.maximize else row.value)
        if self.write and model.folder is not None and jax.process_index() == 0:
            write_scale(model.folder, best.label)
        runtime.meet("scale written")
        return report.add(dataclasses.replace(best, metric="scale_best"))


def write_scale(folder: pathlib.Path, scale: str | None) -> None:
    """Sets `attn_logits_scaling` of a HypeNet folder's config.json; "none" is null."""
    path = folder / "config.json"
    fields = scaled_fields(path)
    fields["attn_logits_scaling"] = None if scale == NONE else scale
    from_hf(fields)
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
    log.info("%s: attn_logits_scaling is now %s", path, scale)


def scaled_fields(path: pathlib.Path) -> dict[str, Any]:
    """A config.json with a logit scale; raises CheckpointError for that of a Qwen3, which has none."""
    fields = read_json(path)
    if "attn_logits_scaling" not in fields:
        raise CheckpointError(
            f"{path} has no attn_logits_scaling that a scale could be written to; write that of a HypeNet"
        )
    return fields
