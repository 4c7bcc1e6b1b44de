"""Mixtures: exact shares, a pure function of the index, and no tokenising for other weights."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import fingerprint
from launcher.config.check import checks
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Loader
from launcher.data.pack.mixture import BLOCK, MixedOrder, open_data, pack_counts
from launcher.data.pack.packing import PackedOrder
from launcher.data.prepare.preparation import prepare
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]
CAPACITY = 8
SOURCES = st.lists(
    st.tuples(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=20), st.integers(0, 90)),
    min_size=1,
    max_size=5,
).filter(lambda sources: any(count for _, count in sources))


def mixed(sources: list[tuple[list[int], int]], seed: int, shuffle: bool = True) -> MixedOrder:
    orders = [
        PackedOrder(np.array(lengths), CAPACITY, seed + i, shuffle)
        for i, (lengths, _) in enumerate(sources)
    ]
    starts = np.cumsum([0, *(len(lengths) for lengths, _ in sources)]).tolist()
    return MixedOrder(orders, [count for _, count in sources], starts, seed, shuffle)


@settings(deadline=None)
@given(SOURCES, st.integers(0, 5), st.booleans())
def test_every_epoch_has_exactly_the_packs_of_each_source(
    sources: list[tuple[list[int], int]], seed: int, shuffle: bool
) -> None:
    order = mixed(sources, seed, shuffle)
    owns: list[list[int]] = [[] for _ in sources]
    for epoch in range(2):
        found = [order.find(epoch * order.num_packs + i) for i in range(order.num_packs)]
        seen = Counter(source for source, _ in found)
        assert [seen[i] for i in range(len(sources))] == order.counts
        for source, own in found:
            owns[source].append(own)
    for own, count in zip(owns, order.counts, strict=True):
        # Each source's packs are used one after the other, none left out, none twice.
        assert sorted(own) == list(range(2 * count))


@settings(deadline=None)
@given(SOURCES, st.integers(0, 5), st.lists(st.integers(0, 150), max_size=10))
def test_any_pack_is_found_without_the_others(
    sources: list[tuple[list[int], int]], seed: int, places: list[int]
) -> None:
    order = mixed(sources, seed)
    walked = [order.pack(i).tolist() for i in range(151)]
    for place in places:
        assert mixed(sources, seed).pack(place).tolist() == walked[place]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 2000), min_size=2, max_size=5), st.integers(0, 9))
def test_shares_hold_in_every_block(counts: list[int], seed: int) -> None:
    order = mixed([([1], count) for count in counts], seed)
    for begin in range(0, order.num_packs - BLOCK + 1, BLOCK):
        seen = Counter(order.find(begin + i)[0] for i in range(BLOCK))
        for source, count in enumerate(counts):
            assert abs(seen[source] - BLOCK * count / order.num_packs) <= 2 * len(counts)


def test_ranks_do_not_get_one_source_each() -> None:
    order = mixed([([1], 500), ([1], 500)], seed=3)
    for rank in (0, 1):
        seen = Counter(order.find(i)[0] for i in range(rank, 1000, 2))
        assert 200 < seen[0] < 300


PACKS = st.lists(st.integers(1, 10_000), min_size=1, max_size=6)


@settings(deadline=None)
@given(PACKS, st.data())
def test_counts_follow_weights(packs: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(packs), max_size=len(packs)))
    counts = pack_counts([{"weight": w} for w in weights], packs, packs)
    total = max(sum(packs), len(packs))
    assert sum(counts) == total
    assert min(counts) >= 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) <= len(packs)


@settings(deadline=None)
@given(PACKS, st.floats(0.1, 100))
def test_temperature_evens_out(packs: list[int], temperature: float) -> None:
    plain: list[dict[str, Any]] = [{} for _ in packs]
    assert pack_counts(plain, packs, packs) == packs
    counts = pack_counts(plain, packs, packs, temperature)
    assert sum(counts) == sum(packs)
    order = sorted(range(len(packs)), key=lambda i: packs[i])
    assert all(counts[a] <= counts[b] + 1 for a, b in zip(order, order[1:], strict=False))
    even = pack_counts(plain, packs, packs, 1e9)
    assert max(even) - min(even) <= 1


def test_epochs_count_passes_over_each_source() -> None:
    assert pack_counts([{"epochs": 2}, {}, {"epochs": 0.5}], [10, 7, 4], [1, 1, 1]) == [20, 7, 2]


@pytest.fixture
def files(make_data: MakeData) -> list[str]:
    kinds = (("a", 30), ("b", 60), ("c", 12))
    return [
        str(make_data([chat(f"{name} {i}?", f"it is {i}") for i in range(n)], f"{name}.jsonl"))
        for name, n in kinds
    ]


def config_of(configure: Configure, files: list[str], **share: list[float]) -> Config:
    entries = [{"path": path, "name": Path(path).stem} for path in files]
    for key, values in share.items():
        for entry, value in zip(entries, values, strict=True):
            entry[key] = value  # type: ignore[assignment]
    return configure(train=entries, max_length=48, validation_share=0.2)


def test_a_mixture_trains_on_the_shares_it_was_given(
    configure: Configure, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(configure, files, weight=[1, 1, 2])
    found = prepare(config)
    assert fingerprint.lookup(config) == found
    cache, order = open_data(str(found["train"]), config)
    assert isinstance(cache, JoinedCache)
    assert isinstance(order, MixedOrder)
    sources = Counter()
    for i in range(order.num_packs):
        names = {Path(cache.where(record)).name[0] for record in order.pack(i)}
        assert len(names) == 1
        sources[names.pop()] += 1
    assert [sources[name] for name in "abc"] == order.counts
    assert abs(sources["c"] / order.num_packs - 0.5) < 0.02
    said = capsys.readouterr().err
    assert "train, a: " in said
    assert f"c {order.counts[2] / order.num_packs:.1%}" in said
    held_out = TokenCache.open(str(found["validation"]))
    assert {Path(held_out.where(i)).name[0] for i in range(len(held_out))} == set("abc")
    assert len(held_out) + len(cache) == 102


def test_other_shares_tokenise_nothing(
    configure: Configure, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(config_of(configure, files, weight=[1, 1, 2]))
    monkeypatch.setattr(
        "launcher.data.prepare.preparation.load_tokenizer", None
    )  # any call would fail
    second = prepare(config_of(configure, files, weight=[5, 1, 1]))
    assert second["train"] != first["train"]
    assert second["validation"] == first["validation"]
    third = config_of(configure, files, epochs=[1, 0.5, 3])
    cache, order = open_data(str(prepare(third)["train"]), third)
    assert isinstance(order, MixedOrder)
    packs = [part.num_packs for part in order.orders]
    assert order.counts == [packs[0], round(packs[1] / 2), 3 * packs[2]]
    assert len(cache) > 60


def test_steps_are_the_same_for_any_number_of_ranks(configure: Configure, files: list[str]) -> None:
    config = config_of(configure, files, weight=[1, 2, 1])
    cache, order = open_data(str(prepare(config)["train"]), config)

    def records(step: int, world: int) -> list[list[int]]:
        rows = [
            row
            for rank in range(world)
            for row in Loader(
                cache,
                order,
                global_sequences=12,
                micro_batch=1,
                accumulation=12 // world,
                rank=rank,
                world_size=world,
            ).step(step)
        ]
        return sorted(row.records for row in rows)

    for step in (0, 7, 1000):
        assert records(step, 1) == records(step, 2) == records(step, 4)


def test_each_source_has_format_columns_and_limit_of_its_own(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(
        train=[
            {"path": str(make_data([chat("a", "b")] * 5, "chat.jsonl")), "limit": 2},
            {
                "path": str(make_data([{"q": "1?", "a": "2"}] * 4, "qa.jsonl")),
                "format": "prompt",
                "columns": {"prompt": "q", "completion": "a"},
            },
            str(make_data([{"instruction": "x", "output": "y"}], "alpaca.jsonl")),
        ]
    )
    index = TokenCache.open(str(prepare(config)["train"])).index
    assert index.records == 7
    assert index.format == "alpaca, chat, prompt"


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ([{"path": "a", "weight": 1}, {"path": "b", "epochs": 1}], "epochs and weight together"),
        ([{"path": "a", "weight": 0}], "weight is 0"),
        ([{"path": "a", "weight": "much"}], "weight is 'much'"),
        ([{"weight": 1}], "without a path"),
        ([{"path": "a", "wieght": 1}], "unknown key 'wieght'"),
        ([{"path": "a"}, {"path": "a"}], "two sources are called 'a'"),
        ([{"path": "a", "format": "chats"}], "unknown format"),
        ([[]], "not a source"),
    ],
)
def test_mixtures_that_are_refused(configure: Configure, train: Any, found: str) -> None:
    config = configure(train=train)
    problems = checks.check(config, world_size=1, has_gpu=False)
    assert any(found in str(problem) for problem in problems)
    with pytest.raises(ConfigError, match=found.partition("'")[0]):
        fingerprint.locate(config, "train")


def test_shares_are_for_training_and_said_once(configure: Configure) -> None:
    weighted = [{"path": "a", "weight": 1}]
    config = configure(train=weighted, validation=weighted, temperature=2.0)
    found = [str(problem) for problem in checks.check(config, world_size=1, has_gpu=False)]
    assert any("temperature and weight together" in problem for problem in found)
    assert any("data.validation: shares of a mixture" in problem for problem in found)
    config = configure(train="a", temperature=-1.0)
    assert any(
        "data.temperature" in str(p) for p in checks.check(config, world_size=1, has_gpu=False)
    )


def test_a_source_with_nothing_left_is_named(configure: Configure, make_data: MakeData) -> None:
    good = str(make_data([chat("a", "b")], "good.jsonl"))
    overlong = str(make_data([chat("a" * 400, "b" * 400)], "overlong.jsonl"))
    config = configure(train=[{"path": good}, {"path": overlong}], overlong="drop", max_length=32)
    with pytest.raises(DataError, match="no record is left"):
        prepare(config)
