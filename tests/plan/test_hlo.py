"""Collectives are read from a program's text: kinds, bytes that a device sends, and how often."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hypenet_jax.plan.hlo import collectives, groups_of

TEXT = """
HloModule jit_step, num_partitions=8

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%all-reduce-scatter.2 (x: f32[64]) -> f32[16] {
  %all-reduce.9 = f32[64]{0:T(128)S(1)} all-reduce(%x), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%region_0.1
  ROOT %dynamic-slice.1 = f32[16]{0} dynamic-slice(%all-reduce.9, %offset), dynamic_slice_sizes={16}
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %pair.1 = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x.1), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done.1 = f32[8]{0} collective-permute-done(%pair.1)
  ROOT %tuple.2 = (s32[], f32[8]{0}) tuple(%next, %done.1)
}

%rounds (p: (s32[], f32[8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %compare.1 = pred[] compare(%i, %constant.7), direction=LT
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %while.2 = (s32[], f32[8]) while(%t), condition=%rounds, body=%inner
  %gather.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%y), dimensions={0}, \
replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %scatter.1 = f32[16]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  %sum.1 = (f32[2]{0}, s8[8]{0}) all-reduce(%a, %b), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%region_0.1
}
"""


@pytest.fixture
def found():
    return {one.kind: one for one in collectives(TEXT)}


WINDOWED = """
HloModule jit_step, num_partitions=8

%body (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %constant.3 = u32[]{:T(128)} constant(2)
  %count.1 = u32[]{:T(128)} get-tuple-element(%p), index=1
  %add.4 = u32[]{:T(128)} add(%count.1, %constant.3)
  %send.1 = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %tuple.1 = (f32[8]{0}, /*index=1*/u32[]{:T(128)}) tuple(%send.1, /*index=1*/%add.4)
}

%rounds (p: (f32[8], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8)
  %count.2 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %compare.2 = pred[]{:T(512)} compare(%count.2, %constant.1), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.3 = (f32[8], u32[]) while(%t), condition=%rounds, body=%body
}
"""


def test_a_loop_that_counts_in_twos_goes_round_half_as_often():
    (sent,) = collectives(WINDOWED)
    assert (sent.times, sent.sent) == (4, 32)


def test_what_is_inside_loops_counts_once_per_round(found):
    assert found["collective-permute"].times == 15
    assert found["all-gather"].times == 5
    assert found["all-reduce"].times == 1


def test_bytes_are_those_that_a_device_sends_around_a_ring(found):
    assert found["collective-permute"].sent == 8 * 4
    assert found["all-gather"].sent == 16 * 8 * 2 * 3 / 4
    assert found["all-reduce"].sent == 2 * (2 * 4 + 8) * 1 / 2


def test_a_sum_that_keeps_its_own_part_is_a_scatter(found):
    assert found["reduce-scatter"].sent == 64 * 4 * 3 / 4
    assert "all-reduce-scatter" not in found


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("", ((0, 1, 2, 3),)),
    ],
)
def test_groups_are_read_in_every_notation(attributes, groups):
    assert groups_of(attributes, devices=4) == groups


def test_a_scan_over_sharded_weights_gathers_each_of_them_once_per_device():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec(None, "x"))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    layers = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=where)
    x = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=rows)

    def run(x, layers):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, layers)[0]

    text = jax.jit(run, out_shardings=rows).lower(x, layers).compile().as_text()
    (gather,) = collectives(text)
    assert (gather.kind, gather.times) == ("all-gather", 6)
    assert gather.sent == 64 * 64 * 4 * 7 / 8
