"""The rules of the global batch."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.check import batching
from launcher.config.derive import plan
from launcher.config.schema import MicroBatch
from launcher.core.errors import Problem
from support import hints
from support.configs import make_config


def check(world_size: int | None = 2, packing: bool = True, **batch: Any) -> list[Problem]:
    config = make_config(batch=batch, data={"max_length": 1024, "packing": packing})
    return list(batching.check(config, world_size))


@pytest.mark.parametrize(
    ("batch", "world_size", "packing", "where", "found", "hint"),
    [
        ({}, 2, True, "batch", "neither is given", "batch.sequences=64"),
        ({"tokens": 2048, "sequences": 2}, 2, True, "batch", "tokens=2048, sequences=2", ""),
        ({"tokens": 8192}, 2, False, "batch.tokens", "packing=false", "use batch.sequences=8"),
        (
            {"tokens": 5000},
            2,
            True,
            "batch.tokens",
            "not a multiple of data.max_length=1024",
            "batch.tokens=4096 or batch.tokens=5120",
        ),
        ({"tokens": 500}, 2, True, "batch.tokens", "not a multiple", ": batch.tokens=1024"),
        (
            {"sequences": 64},
            3,
            True,
            "batch.sequences",
            "64 cannot be shared by 3 ranks",
            "batch.sequences=63 or batch.sequences=66",
        ),
        (
            {"tokens": 65536},
            3,
            True,
            "batch.tokens",
            "(64 sequences) cannot be shared by 3",
            "batch.tokens=64512 or batch.tokens=67584",
        ),
        ({"sequences": 1}, 4, True, "batch.sequences", "1 cannot", ": batch.sequences=4"),
        (
            {"sequences": 8, "micro": 3},
            2,
            True,
            "batch.micro",
            "3 does not divide the 4 sequences of a rank",
            "use one of 1, 2, 4; or nearest that can: batch.sequences=6 or batch.sequences=12",
        ),
        (
            {"sequences": 7, "micro": 2},
            2,
            True,
            "batch.sequences",
            "7 cannot be shared",
            "batch.sequences=4 or batch.sequences=8",
        ),
    ],
)
def test_refused(
    batch: dict[str, Any], world_size: int, packing: bool, where: str, found: str, hint: str
) -> None:
    (problem,) = check(world_size, packing, **batch)
    assert problem.where == where
    assert found in problem.found
    assert hint in problem.hint
    for words in hints.ways(problem.hint):
        stated = {k.partition(".")[2]: int(v) for k, v in (word.split("=") for word in words)}
        left = check(world_size, packing, **stated)
        assert problem.found not in [one.found for one in left], words


def test_auto_and_layers_that_a_memory_budget_chooses_are_refused_together() -> None:
    batch = {"sequences": 8, "micro": MicroBatch.auto}
    config = make_config(batch=batch, model={"activation_gib": 2.0})
    (problem,) = batching.check(config, 2)
    assert (problem.where, problem.hint) == (
        "batch.micro",
        "batch.micro=null, or model.activation_gib=null",
    )
    config.batch.micro = None
    assert list(batching.check(config, 2)) == []
    config = make_config(batch=batch)
    assert list(batching.check(config, 2)) == []


@pytest.mark.parametrize(
    ("batch", "world_size", "packing"),
    [
        ({"sequences": 64}, 4, True),
        ({"sequences": 64}, 4, False),
        ({"tokens": 65536}, 8, True),
        ({"sequences": 8, "micro": 2}, 2, True),
        ({"sequences": 7}, None, True),
    ],
)
def test_accepted(batch: dict[str, Any], world_size: int | None, packing: bool) -> None:
    assert check(world_size, packing, **batch) == []


@given(
    sequences=st.integers(1, 500),
    world_size=st.integers(1, 70),
    micro=st.none() | st.integers(1, 9),
    in_tokens=st.booleans(),
)
def test_what_the_hint_proposes_can_be_cut(
    sequences: int, world_size: int, micro: int | None, in_tokens: bool
) -> None:
    batch = {"tokens": sequences * 1024} if in_tokens else {"sequences": sequences}
    found = check(world_size, micro=micro, **batch)
    if not found:
        assert sequences % world_size == 0
        return
    proposals = re.findall(r"batch\.(tokens|sequences)=(\d+)", found[0].hint)
    assert proposals
    for name, number in proposals:
        assert check(world_size, micro=micro, **{name: int(number)}) == []
        config = make_config(batch={name: int(number), "micro": micro})
        made = plan.make(config, world_size=world_size, has_gpu=False)
        assert made.micro_batch * made.accumulation * world_size == made.global_sequences
