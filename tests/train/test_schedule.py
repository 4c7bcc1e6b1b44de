"""Learning-rate schedules as functions of the step."""

import pytest

from launcher.config import schema
from launcher.train.loop import _step_seed
from launcher.train.schedule import factor

STEPS, WARMUP = 100, 10


def factors(name, **options):
    make = schema.WsdConfig if name == "wsd" else schema.ScheduleConfig
    return [factor(make(name=name, **options), step, STEPS, WARMUP) for step in range(STEPS)]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_rises_to_the_peak(name):
    values = factors(name)
    assert values[0] == pytest.approx(1 / 11)
    assert values[:WARMUP] == sorted(values[:WARMUP])
    assert values[WARMUP] == 1.0
    assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_decay_falls_towards_the_minimum(name):
    values = factors(name, min_ratio=0.1)
    tail = values[WARMUP:]
    assert tail == sorted(tail, reverse=True)
    assert 0.1 < values[-1] < 0.2
    at_end = factor(
        (schema.WsdConfig if name == "wsd" else schema.ScheduleConfig)(name=name, min_ratio=0.1),
        STEPS,
        STEPS,
        WARMUP,
    )
    assert at_end == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay():
    values = factors("wsd", decay=0.2)
    assert set(values[WARMUP:81]) == {1.0}
    assert values[81] < 1.0


def test_linear_is_halfway_in_the_middle():
    assert factors("linear")[55] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", [0, 42, 1234567890, 2**32 - 1])
def test_step_seeds_fit_torch_and_differ(seed):
    import torch

    seeds = {_step_seed(seed, step, rank) for step in (0, 1, 10**6) for rank in (0, 1, 1000)}
    assert len(seeds) == 9
    for value in seeds:
        torch.manual_seed(value)
