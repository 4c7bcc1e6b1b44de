"""Answers dealt to ranks and micro-batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.derive import plan
from launcher.config.schema.reinforce import GrpoConfig
from launcher.data.pack.loader import LEAST_SHARED
from launcher.objectives.grpo.objective import Grpo
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.dealing import Load, deal, row_of
from support.configs import make_config
from support.rollouts import answered

#: Of the answers of each group, with the length of its prompt.
GROUPS = st.lists(
    st.tuples(st.integers(1, 32), st.lists(st.integers(1, 32), min_size=1, max_size=9)),
    min_size=1,
    max_size=12,
)


def loads_in(groups: list[tuple[int, list[int]]]) -> list[Load]:
    return [Load(i, prompt, own) for i, (prompt, answers) in enumerate(groups) for own in answers]


def made(world: int, micro: int) -> plan.Plan:
    config = make_config(
        data={"max_length": 64}, batch={"sequences": world * micro}, train={"steps": 1}
    )
    found = plan.make(config, world_size=world, has_gpu=False)
    return replace(found, micro_batch=micro)


def computed(loads: list[Load], places: list[int], shares: bool) -> int:
    """Tokens of a row."""
    seen, total = set(), 0
    for load in (loads[i] for i in places):
        is_shared = shares and load.prompt >= LEAST_SHARED and load.group in seen
        total += load.own + (0 if is_shared else load.prompt)
        seen.add(load.group)
    return total


@given(GROUPS, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_every_answer_is_computed_once_within_the_micro_batch(
    groups, world, micro, packing, shares
):
    loads = loads_in(groups)
    dealt = deal(loads, made(world, micro), packing=packing, shares=shares)
    assert len(dealt) == world
    assert len({len(rows) for rows in dealt}) == 1
    rows = [row for own in dealt for row in own]
    assert all(row.places for row in rows)
    counted = sorted(place for row in rows if not row.is_idle for place in row.places)
    assert counted == list(range(len(loads)))
    for row in rows:
        if packing:
            assert computed(loads, row.places, shares) <= micro * 64
        else:
            assert len(row.places) <= micro


@given(st.lists(st.integers(20, 40), min_size=16, max_size=60), st.integers(1, 4))
def test_ranks_have_about_as_many_tokens(lengths, world):
    loads = [Load(i, 1, length - 1) for i, length in enumerate(lengths)]
    dealt = deal(loads, made(world, 4), packing=True)
    tokens = [computed(loads, [i for row in own for i in row.places], False) for own in dealt]
    assert max(tokens) - min(tokens) <= len(dealt[0]) * max(lengths)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(30, [5, 4, 5, 4])] * 4, [range(4), range(4, 8), range(8, 12), range(12, 16)]),
        ([(30, [5, 4, 5, 4])], [[0, 1], [2, 3]]),
        ([(4, [30, 8, 8, 8])], [[0], [1, 2, 3]]),
    ],
)
def test_groups_stay_together_where_that_computes_least(groups, expected):
    """Whole groups; halves of one, where there are two ranks; an answer that is as long as the
    others together."""
    loads = loads_in(groups)
    dealt = deal(loads, made(2, 2 * len(groups)), packing=True, shares=True)
    rows = [row.places for own in dealt for row in own]
    for places in expected:
        assert any(set(places) <= set(row) for row in rows)
    costs = [computed(loads, row, True) for row in rows]
    assert max(costs) <= 1.25 * min(costs)


def answer(number: int, prompt: list[int], tokens: list[int], **changes: object) -> ScoredAnswer:
    own = answered(
        number=number,
        record=7,
        advantage=0.5 + number,
        prompt_tokens=prompt,
        tokens=tokens,
        sampler_log_probs=[-0.5 * (i + 1) for i in range(len(tokens))],
    )
    return replace(own, **changes)


def test_a_row_learns_what_was_drawn_and_nothing_else():
    answers = [answer(0, [5, 6, 7], [8, 9]), answer(1, [5, 6, 7], [4])]
    row = row_of(answers)
    assert row.input_ids.tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 4]
    assert row.targets.tolist() == [8, 9, 4]
    assert row.target_index.tolist() == [2, 3, 7]
    assert row.columns["advantage"].tolist() == [0.5, 1.5]
    assert row.columns["sampler"].tolist() == [-0.5, -1.0, -0.5]
    assert "old" not in row.columns
    assert (row.records, row.record_weights) == ([7, 7], None)
    later = row_of([replace(own, log_probs=[-1.0] * len(own.tokens)) for own in answers])
    assert later.columns["old"].tolist() == [-1.0] * 3


def test_answers_of_a_prompt_are_one_record_where_it_is_shared():
    answers = [
        *(answer(i, list(range(20, 32)), [8, i], weight=2.0) for i in range(3)),
        *(answer(i, list(range(40, 52)), [9], place=1, record=8) for i in range(2)),
    ]
    row = row_of(answers, shares=True)
    assert (row.records, row.sizes) == ([7, 8], [3, 2])
    assert row.columns["key"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert row.sharing is not None
    assert len(row.sharing.kept) == 12 + 1 + 3 + 12 + 2
    assert objective().weight(row) == 3 * 2 + 2
    apart = row_of(answers)
    assert (apart.sizes, apart.sharing) == ([1] * 5, None)
    assert objective().weight(apart) == objective().weight(row)
    for key in ("input_ids", "targets", "weights"):
        assert getattr(apart, key).tolist() == getattr(row, key).tolist()
    other = replace(answers[1], weight=1.0)
    assert row_of([answers[0], other], shares=True).sizes == [1, 1]


def objective() -> Grpo:
    return Grpo(GrpoConfig())


def test_an_idle_row_counts_nothing():
    row = row_of([answer(0, [5], [8])], idle=True)
    assert row.record_weights is not None
    assert row.record_weights.tolist() == [0.0]
