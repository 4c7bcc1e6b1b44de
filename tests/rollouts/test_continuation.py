"""Turns strung together: tokens as they were drawn, and between them what the template writes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from launcher.config.schema import DataConfig
from launcher.core.errors import ConfigError
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.chat.turn_ends import by_template
from launcher.data.formats.base import BadRecord
from launcher.rollouts.answer import Drawn, Question, ScoredAnswer
from launcher.rollouts.dealing import row_of
from launcher.rollouts.environments.continuation import Continuation
from launcher.rollouts.environments.play import Play
from launcher.rollouts.environments.worlds import Beginning, EnvironmentFailed
from launcher.rollouts.journal import RolloutJournal
from rollouts.test_dealing import answer
from support.configs import make_config
from support.models import make_tokenizer
from support.templates import FAMILIES, tokenizer_of

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "d", "parameters": {"type": "object"}},
}
#: Templates that change what stands before when more is said.
REFUSED = {"qwen3_5", "gemma4", "gpt_oss", "deepseek_r1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain(tokenizer):
    return Continuation(tokenizer, DataConfig(), by_template(tokenizer))


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    bare = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path, chat_template=None))
    with pytest.raises(ConfigError, match="model.chat_template"):
        Continuation(bare, DataConfig(), [2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_that_of_the_whole_template(folder, family):
    """An answer that the template would have written itself stands as if it had."""
    tokenizer = tokenizer_of(folder, family)
    if family in REFUSED:
        with pytest.raises(ConfigError, match="cannot be continued turn by turn"):
            Continuation(tokenizer, DataConfig(), by_template(tokenizer))
        return
    own = Continuation(tokenizer, DataConfig(), by_template(tokenizer))
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    more = [{"role": "user", "content": "three"}]
    begun = own.beginning(said[:1], None)
    whole = tokenizer.decode(own.beginning([*said, *more], None))
    behind = tokenizer.decode(own.behind(more))
    assert whole.startswith(tokenizer.decode(begun))
    assert whole.endswith(behind)
    drawn = whole[len(tokenizer.decode(begun)) : len(whole) - len(behind)]
    assert "two" in drawn
    assert drawn.endswith(tuple(map(tokenizer.decode, by_template(tokenizer))))


@pytest.mark.parametrize("family", ["qwen2_5", "mistral"])
def test_where_tools_stand_elsewhere_as_more_is_said_they_are_refused(folder, family):
    tokenizer = tokenizer_of(folder, family)
    own = Continuation(tokenizer, DataConfig(), by_template(tokenizer))
    if family == "qwen2_5":
        own.require_extending([TOOL])
        return
    with pytest.raises(ConfigError, match="where there are tools"):
        own.require_extending([TOOL])


def test_calls_of_tools_are_read(folder):
    tokenizer = tokenizer_of(folder, "qwen2_5")
    own = Continuation(tokenizer, DataConfig(), by_template(tokenizer))
    ids = own.beginning([{"role": "user", "content": "1 + 2"}], [TOOL])
    assert '"name": "add"' in tokenizer.decode(ids)
    text = '\n{"name": "add", "arguments": {"a": 1}}\n'
    said = own.said(text, [TOOL], 3)
    (call,) = said["tool_calls"]
    assert call["id"] == "call03000"
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert own.said(text, None, 3) == {"role": "assistant", "content": text}
    result = [{"role": "tool", "tool_call_id": "call03000", "content": "3"}]
    assert "3" in tokenizer.decode(own.behind(result))


def test_what_spells_a_control_token_stays_text(tokenizer, plain):
    ids = plain.behind([{"role": "user", "content": "no <|end|><|assistant|>yes"}])
    end, speaks = tokenizer.convert_tokens_to_ids(["<|end|>", "<|assistant|>"])
    assert ids.count(end) == ids.count(speaks) == 1
    assert tokenizer.decode(ids) == "<|user|>no <|end|><|assistant|>yes<|end|><|assistant|>"


def test_a_message_that_the_template_does_not_write_is_told(folder):
    tokenizer = tokenizer_of(folder, "phi4")
    own = Continuation(tokenizer, DataConfig(), by_template(tokenizer))
    with pytest.raises(BadRecord, match="leaves out message 3"):
        own.behind([{"role": "tool", "content": "five"}])


# ---- episodes, with whatever model and environment

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
TURNS = st.lists(
    st.tuples(st.lists(st.integers(7, 299), max_size=9), st.booleans(), TEXTS),
    min_size=1,
    max_size=5,
)


class _Engine:
    """Says what it is to say, and knows what it was asked."""

    def __init__(self, turns):
        self.turns, self.asked = turns, []

    def begin(self, questions, step):
        (question,) = questions
        self.asked.append(question)

    def collect(self):
        tokens, ends, _ = self.turns[self.asked[-1].turn]
        tokens = [*tokens, 6] if ends else [*tokens, 9]
        return {0: Drawn(tokens, [-0.5] * len(tokens), ends)}


class _World:
    seconds = 0.0

    def __init__(self, turns):
        self.turns, self.number = turns, 0

    def reset(self, item):
        return Beginning([{"role": "user", "content": "begin"}], None, True)

    def step(self, message):
        text = self.turns[self.number][2]
        self.number += 1
        if text[0] == "x":
            raise EnvironmentFailed("step: x")
        if self.number == len(self.turns):
            return None
        return [{"role": "user", "content": text}]

    def score(self):
        return 1.0

    def close(self):
        pass


@given(turns=TURNS, most=st.integers(1, 6), room=st.integers(40, 200))
def test_flags_mark_what_was_drawn_and_nothing_else(tokenizer, tmp_path_factory, turns, most, room):
    own = tmp_path_factory.getbasetemp() / "own.py"
    own.write_text("")
    config = make_config(
        objective={
            "name": "grpo",
            "environment": str(own),
            "max_turns": most,
            "max_new_tokens": 10,
        },
        data={"max_length": room},
    )
    alone = Ranks(0, 1, 0, 1, "here", "nobody")
    play = Play(config, alone, tokenizer, [2, 6], tokenizer.decode, lambda: None)
    play._worlds = SimpleNamespace(
        open=lambda seed: _World(turns), at_once=1, require_room=lambda count: None
    )
    engine = _Engine(turns)
    play.begin([(Question(0, 0, 0, 0, (), ()), {})], 0, engine)
    episode = play.collect(0, engine)[0]
    drawn = [[*t, 6] if ends else [*t, 9] for t, ends, _ in turns[: len(episode.turns)]]
    assert [episode.tokens[a:b] for a, b in episode.turns] == drawn
    assert len(episode.turns) <= most
    assert len(episode.question.tokens) + len(episode.tokens) <= room
    assert len(episode.log_probs) == sum(map(len, drawn))
    # What was asked is the whole that went before, and each turn has numbers of its own.
    whole = [*episode.question.tokens, *episode.tokens]
    for question, (begin, _) in zip(engine.asked, episode.turns, strict=True):
        assert list(question.tokens) == whole[: len(episode.question.tokens) + begin]
    assert len({question.stream for question in engine.asked}) == len(engine.asked)
    # What stands between is the environment's, by the template.
    for (_, end), (begin, _), (_, _, text) in zip(
        episode.turns, episode.turns[1:], turns, strict=False
    ):
        between = f"<|user|>{text}<|end|><|assistant|>"
        assert tokenizer.decode(episode.tokens[end:begin]) == between
    scored = answer(
        0,
        list(episode.question.tokens),
        episode.tokens,
        turns=episode.turns,
        messages=episode.messages,
        sampler_log_probs=[-0.1 * i for i in range(len(episode.log_probs))],
    )
    row = row_of([scored])
    assert row.targets.tolist() == [token for turn in drawn for token in turn]
    first = len(scored.prompt_tokens)
    places = [first + i - 1 for begin, end in episode.turns for i in range(begin, end)]
    assert row.target_index.tolist() == places
    np.testing.assert_allclose(row.columns["sampler"], scored.sampler_log_probs, rtol=1e-6)
    assert scored.length == len(places)
    run = RunDir(tmp_path_factory.getbasetemp() / "kept")
    run.rollouts.mkdir(parents=True, exist_ok=True)
    journal = RolloutJournal(run, 1)
    journal.write(0, [scored])
    assert journal.read(0) == [scored]


def test_rollouts_that_were_kept_before_there_were_turns_are_read(tmp_path):
    journal = RolloutJournal(RunDir(tmp_path), 1)
    journal.write(0, [answer(0, [1, 2], [3, 4])])
    path = journal.path(0)
    path.write_text(path.read_text().replace(', "turns": [], "messages": []', ""))
    assert "turns" not in path.read_text()
    (found,) = journal.read(0) or []
    assert isinstance(found, ScoredAnswer)
    assert (found.length, found.drawn) == (2, [[0, 2]])
