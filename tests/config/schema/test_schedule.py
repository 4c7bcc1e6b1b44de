"""Learning-rate schedules as functions of the step."""

import pytest

from launcher.config import schema

STEPS, WARMUP = 100, 10


def factors(name, **options):
    make = schema.WsdConfig if name == "wsd" else schema.ScheduleConfig
    schedule = make(name=name, **options)
    return [schedule.factor(step, STEPS, WARMUP) for step in range(STEPS)]


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
    make = schema.WsdConfig if name == "wsd" else schema.ScheduleConfig
    assert make(name=name, min_ratio=0.1).factor(STEPS, STEPS, WARMUP) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay():
    values = factors("wsd", decay=0.2)
    assert set(values[WARMUP:81]) == {1.0}
    assert values[81] < 1.0


def test_linear_is_halfway_in_the_middle():
    assert factors("linear")[55] == pytest.approx(0.5)
