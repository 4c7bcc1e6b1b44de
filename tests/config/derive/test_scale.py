"""The simulation of many ranks: formulas against published and hand-computed values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import main
from launcher.config.derive import memory, plan, scale
from launcher.config.schema import Config, TinyModelConfig
from launcher.core.errors import ConfigError
from support.configs import make_config

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "cluster=h100x8")


def config_of(zero: int = 2, **fields: Any) -> Config:
    config = make_config(
        batch={"sequences": 64, "micro": 1},
        train={"steps": 100},
        engine={"zero": zero},
    )
    config.model = TinyModelConfig()
    site = replace(config.cluster.scale, **{"card": "H100", **fields})
    config.cluster = replace(config.cluster, gpus_per_node=8, scale=site)
    return config


def simulated(ranks: int = 16, **fields: Any) -> scale.Simulation:
    config = config_of(**fields)
    return scale.simulate(config, plan.make(config, world_size=ranks, has_gpu=True))


@pytest.mark.parametrize(("mtbf_min", "best_min"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_best_interval_is_that_of_dalys_figures(mtbf_min, best_min):
    """Figures 3 to 5 of his paper, for saves of five minutes."""
    assert scale.daly(5, mtbf_min) == pytest.approx(best_min, rel=0.006)


def test_best_interval_by_hand():
    assert scale.young(5, 1440) == 120
    assert scale.daly(20, 10) == 10
    assert scale.daly(0, 10) == 0


@given(save=st.floats(0.1, 100), mtbf=st.floats(1e3, 1e6), factor=st.floats(0.2, 5))
def test_no_other_interval_loses_clearly_less(save, mtbf, factor):
    best = scale.daly(save, mtbf)
    other = scale.lost_share(best * factor, save, 60, mtbf)
    assert scale.lost_share(best, save, 60, mtbf) <= other + 1e-3


def test_failures_without_end_lose_all():
    assert scale.lost_share(1.0, 1.0, 1e9, 1.0) == 1
    assert scale.lost_share(0.0, 1.0, 0.0, 1.0) == 1


@pytest.mark.parametrize(
    ("zero", "all_reduce", "all_gather", "reduce_scatter"),
    [(0, 2, 0, 0), (1, 4, 2, 0), (2, 16, 2, 0), (3, 0, 16, 16)],
)
def test_bytes_by_stage(zero, all_reduce, all_gather, reduce_scatter):
    """Bytes a parameter in bf16, with four micro-batches a step and sums in fp32."""
    config = config_of()
    made, shape = plan.make(config, world_size=16, has_gpu=True), memory.model_shape(config)
    assert shape is not None
    assert made.accumulation == 4
    moved = scale.traffic(config, made, shape, zero)
    found = (moved.all_reduce, moved.all_gather, moved.reduce_scatter)
    assert found == tuple(shape.parameters * n for n in (all_reduce, all_gather, reduce_scatter))


def test_a_ring_sends_all_but_its_own_part_twice():
    assert scale.Exchange(all_reduce=80, all_gather=40, reduce_scatter=40).sent(4) == 180


def test_seconds_of_two_levels_by_hand():
    config = config_of(node_bandwidth=1, network_bandwidth=0.5, latency_us=1000)
    moved = scale.Exchange(all_gather=16e9, calls=3)
    # In a node 7/8 of 16 GB at 1 GB/s; between two half of 2 GB at 0.5 GB/s; 3 calls of 8 hops.
    assert scale.communication_s(config, moved, 16, 8) == pytest.approx(14 + 2 + 0.024)
    assert scale.communication_s(config, moved, 8, 8) == pytest.approx(14 + 0.021)


@given(
    name=st.sampled_from(["node_bandwidth", "network_bandwidth", "tflops", "mfu", "overlap"]),
    low=st.floats(0.01, 0.5),
    factor=st.floats(1, 2),
)
def test_better_machines_are_never_slower(name, low, factor):
    before, after = (simulated(**{name: value}) for value in (low, low * factor))
    for slow, fast in zip(before.stages, after.stages, strict=True):
        assert fast.step_s <= slow.step_s * (1 + 1e-9)


def test_failures_grow_with_nodes():
    few, many = simulated(8, node_mtbf_hours=100), simulated(64, node_mtbf_hours=100)
    assert few.mtbf_s == 100 * 3600
    assert many.mtbf_s == few.mtbf_s / 8
    assert many.daly_s < few.daly_s
    assert many.run_s is not None
    assert many.failures == many.run_s / many.mtbf_s


def test_one_rank_sends_nothing():
    assert all(stage.sent_bytes == stage.communication_s == 0 for stage in simulated(1).stages)


@pytest.mark.parametrize(
    ("fields", "ranks", "where"), [({"card": "H1"}, 8, "card"), ({}, 12, "--ranks")]
)
def test_what_cannot_be_told_is_refused(fields, ranks, where):
    config = config_of(**fields)
    config.batch.sequences = 96
    with pytest.raises(ConfigError, match=where):
        scale.simulate(config, plan.make(config, world_size=ranks, has_gpu=True))


def test_the_command_prints_a_table_or_json(capsys):
    words = ["plan", "--simulate", "--ranks", "4096", *WORDS, "batch.sequences=4096"]
    assert main([*words, "train.steps=10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["nodes"], len(found["stages"])) == (512, 4)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "4,096 ranks on 512 nodes (estimates)" in shown
    assert all(line in shown for line in scale.ASSUMPTIONS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "8"], "add --simulate"),
        (["--simulate", "--ranks", "0"], "give 1 or more"),
        (["--simulate", "--probe"], "leave out --probe"),
        (["--simulate", "--ranks", "12"], "--ranks 8"),
        (["--simulate", "--ranks", "7"], "batch"),
        (["--simulate", "cluster.scale.card=H1"], "cluster.scale.tflops=NUMBER"),
        (["--simulate", "cluster.scale.node_mtbf_hours=0"], "above 0"),
        (["--simulate", "engine=zero3", "engine.secondary_partition=1"], "at least 2"),
        (["--simulate", "engine.extra.zero_optimization.overlap_comm=false"], "engine.extra={}"),
    ],
)
def test_bad_words_are_refused_with_a_hint(capsys, words, said):
    assert main(["plan", *words, *WORDS, "batch.sequences=24"]) == 2
    assert said in capsys.readouterr().err
