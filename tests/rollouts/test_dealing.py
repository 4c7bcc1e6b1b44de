"""Answers dealt to ranks and micro-batches."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from launcher.config.derive import plan
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.dealing import deal, row_of
from support.configs import make_config

LENGTHS = st.lists(st.integers(2, 64), min_size=1, max_size=60)


def made(world: int, micro: int) -> plan.Plan:
    config = make_config(
        data={"max_length": 64}, batch={"sequences": world * micro}, train={"steps": 1}
    )
    found = plan.make(config, world_size=world, has_gpu=False)
    return replace(found, micro_batch=micro)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_every_answer_is_computed_once_within_the_micro_batch(lengths, world, micro, packing):
    dealt = deal(lengths, made(world, micro), packing=packing)
    assert len(dealt) == world
    assert len({len(rows) for rows in dealt}) == 1
    rows = [row for own in dealt for row in own]
    assert all(row.places for row in rows)
    counted = sorted(place for row in rows if not row.is_idle for place in row.places)
    assert counted == list(range(len(lengths)))
    for row in rows:
        if packing:
            assert sum(lengths[i] for i in row.places) <= micro * 64
        else:
            assert len(row.places) <= micro


@given(st.lists(st.integers(20, 40), min_size=16, max_size=60), st.integers(1, 4))
def test_ranks_have_about_as_many_tokens(lengths, world):
    dealt = deal(lengths, made(world, 4), packing=True)
    tokens = [sum(lengths[i] for row in own for i in row.places) for own in dealt]
    assert max(tokens) - min(tokens) <= len(dealt[0]) * max(lengths)


def answer(number: int, prompt: list[int], tokens: list[int], **changes: object) -> ScoredAnswer:
    own = ScoredAnswer(
        place=0,
        number=number,
        draw=0,
        record=7,
        where="data.jsonl:8",
        prompt="p",
        text="t",
        cut=False,
        score=1.0,
        reward=1.0,
        advantage=0.5 + number,
        is_learned=True,
        sub_scores={},
        errors=[],
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


def test_an_idle_row_counts_nothing():
    row = row_of([answer(0, [5], [8])], idle=True)
    assert row.record_weights is not None
    assert row.record_weights.tolist() == [0.0]
