"""Rows that become longer while a stage trains: one program per length, and the same bits after any cut."""

import collections
import dataclasses

import pytest
import train_toy
from train_toy import Stream, bits, make_batch, run, trainable

from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage import Stage

pytestmark = pytest.mark.brief


class Killed(Exception):
    pass


@dataclasses.dataclass
class Lengthening(Stream):
    """Five batches of 16 rows of 6 tokens, then batches of 8 rows of 12; fails instead of giving batch `death`."""

    death: int | None = None

    def __next__(self):
        if self.position == self.death:
            raise Killed
        batch = make_batch(self.position, *((16, 6) if self.position < 5 else (8, 12)))
        self.position += 1
        return batch


def test_each_length_is_compiled_once_and_a_run_killed_at_either_goes_on_to_the_same_bits(tmp_path):
    traced = collections.Counter()

    def loss(student, frozen, batch):
        traced[batch.tokens.shape] += 1
        return train_toy.loss(student, frozen, batch)

    whole = run(tmp_path / "whole", stage=Stage("toy", loss, trainable), batches=Lengthening())
    assert traced.keys() == {(8, 6), (4, 12)}
    assert len(set(traced.values())) == 1
    for death in (5, 9):
        with pytest.raises(Killed):
            run(tmp_path / "cut", batches=Lengthening(death=death))
    assert bits(run(tmp_path / "cut", batches=Lengthening())) == bits(whole)
    losses = [
        [
            record["loss"]
            for record in read_metrics(tmp_path / name / "metrics.jsonl")
            if record["kind"] == "train"
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
