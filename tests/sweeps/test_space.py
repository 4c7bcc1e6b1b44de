"""Sweep syntax of the command line: what varies, what does not, all combinations, random ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.compose import groups
from launcher.core.errors import ConfigError
from launcher.sweeps import multirun, space
from launcher.sweeps.folder import SweepDir

OPTIONS = {"engine": ["zero0", "zero2", "zero3"], "experiment": ["lora", "full"]}


def _values(word: str) -> tuple[str, ...]:
    (dimension,) = space.read([word], OPTIONS).swept.values()
    return dimension.values


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("optim.lr=1e-4,3e-4", ("1e-4", "3e-4")),
        ("peft.rank=range(8,33,8)", ("8", "16", "24", "32")),
        ("optim.lr=range(0.1,0.5,0.1)", ("0.1", "0.2", "0.3", "0.4")),
        ("optim.lr=range(0.1,0.4,0.1)", ("0.1", "0.2", "0.3")),
        ("optim.lr=range(5,0,-2)", ("5", "3", "1")),
        ("optim.lr=range(1e-5,4e-5,1e-5)", ("1e-05", "2e-05", "3e-05")),
        ("engine=glob(*)", ("zero0", "zero2", "zero3")),
        ("engine=glob(*,exclude=zero2)", ("zero0", "zero3")),
        ("engine=choice(zero0,zero3)", ("zero0", "zero3")),
        ("peft.targets=[q],[k,v]", ("[q]", "[k,v]")),
        ("data.system='a, b','c'", ("'a, b'", "'c'")),
        ("seed=sort(3,1,2)", ("1", "2", "3")),
    ],
)
def test_lists_of_values(word: str, values: tuple[str, ...]) -> None:
    assert _values(word) == values


def test_intervals() -> None:
    read = space.read(
        ["a=interval(1,10)", "b=tag(log,interval(1e-5,1e-1))", "c=int(interval(1,9))"], OPTIONS
    )
    shown = [(d.low, d.high, d.log, d.whole) for d in read.swept.values()]
    assert shown == [(1, 10, False, False), (1e-5, 1e-1, True, False), (1, 9, False, True)]


@pytest.mark.parametrize(
    "word", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "engine=glob(nothing*)"]
)
def test_values_that_cannot_be_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        space.read([word], OPTIONS)


@pytest.mark.parametrize(
    "word",
    ["data.train=/data/*.jsonl", "data.system=what (a, b)", "x=[1,2]", "y={a: 1, b: 2}", "z"],
)
def test_what_does_not_vary_stays_as_typed(word: str) -> None:
    read = space.read([word, "hydra.sweeper.max_batch_size=2"], OPTIONS)
    assert (read.fixed, read.swept) == ([word], {})
    assert read.hydra == ["hydra.sweeper.max_batch_size=2"]


def test_the_last_of_two_wins() -> None:
    assert space.read(["seed=1,2", "seed=3"], OPTIONS).swept == {}
    assert space.read(["seed=3", "seed=1,2"], OPTIONS).fixed == []


def test_hydra_expands_as_we_do(tmp_path) -> None:
    words = [
        "optim.lr=range(0.1,0.4,0.1)",
        "engine=glob(zero?)",
        "peft.targets=[q],[k,v]",
        "seed=1",
    ]
    read, batches = space.read(words, groups.list_groups()), []

    def launch(batch: list[list[str]]) -> list[float | None]:
        batches.append(batch)
        return [None] * len(batch)

    multirun.run(read, groups.list_groups(), SweepDir(tmp_path), launch)
    assert batches == [space.grid(read)]
    assert len(batches[0]) == 3 * 4 * 2
    read.hydra = ["hydra.sweeper.max_batch_size=6"]
    batches.clear()
    multirun.run(read, groups.list_groups(), SweepDir(tmp_path), launch)
    assert [len(batch) for batch in batches] == [6, 6, 6, 6]


@pytest.mark.parametrize("hydra", ["hydra/sweeper=nope", "hydra.sweeper.nope=1"])
def test_what_hydra_refuses_is_a_config_error(tmp_path, hydra: str) -> None:
    read = space.read(["seed=1,2", hydra], OPTIONS)
    with pytest.raises(ConfigError, match="nope"):
        multirun.run(read, OPTIONS, SweepDir(tmp_path), lambda batch: [None] * len(batch))


def test_a_grid_has_no_intervals() -> None:
    with pytest.raises(ConfigError, match="sweep=random"):
        space.grid(space.read(["optim.lr=interval(0,1)"], OPTIONS))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20))
def test_draws_lie_in_the_space_and_differ(seed: int, count: int) -> None:
    words = ["a=tag(log,interval(1e-6,1e-2))", "b=int(interval(2,5))", "c=x,y,z"]
    read = space.read(words, OPTIONS)
    drawn = space.draws(read, count, seed)
    assert drawn == space.draws(read, count, seed)
    assert len({tuple(words) for words in drawn}) == count
    for a, b, c in drawn:
        assert 1e-6 * 0.999 <= float(a.removeprefix("a=")) <= 1e-2 * 1.001
        assert int(b.removeprefix("b=")) in range(2, 6)
        assert c in ("c=x", "c=y", "c=z")


def test_logarithmic_draws_are_logarithmic() -> None:
    read = space.read(["a=tag(log,interval(1e-6,1e-2))"], OPTIONS)
    drawn = [float(words[0].removeprefix("a=")) for words in space.draws(read, 400, 0)]
    mean = sum(map(math.log10, drawn)) / len(drawn)
    # Uniform in the logarithm: mean -4, standard error 4 / sqrt(12 * 400) = 0.058.
    assert abs(mean + 4) < 5 * 0.058


def test_a_space_that_is_exhausted_gives_what_there_is() -> None:
    assert len(space.draws(space.read(["a=1,2", "b=1,2"], OPTIONS), 100, 0)) == 4
