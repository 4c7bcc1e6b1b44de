"""Questions without an answer as tokens: they are asked as those are that have one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from launcher.core.errors import LauncherError
from launcher.data import preview, show
from launcher.data.cache import TokenCache, is_asked
from launcher.data.chat.masking import ChatOptions
from launcher.data.chat.turn_ends import by_template, taught
from launcher.data.formats import BadRecord, Chat, OpenQuestion, Pair
from launcher.data.prepare.encoding import ExampleEncoder
from launcher.data.prepare.preparation import prepare
from launcher.evals.records import prompt_and_reference
from launcher.objectives.base import Objective
from support.templates import FAMILIES, tokenizer_of

USER = {"role": "user", "content": "How many are there?"}
SAID = {"role": "assistant", "content": "Two of them."}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Callable[[str], Any]:
    return functools.cache(lambda family: tokenizer_of(tokenizer_folder, family))


def split_of(encoder: ExampleEncoder, example: Any) -> tuple[list[int], list[int]]:
    (made,) = encoder.encode([example])
    assert not isinstance(made, BadRecord), made
    assert made.is_asked is isinstance(example, OpenQuestion)
    (piece,) = made.pieces
    found = prompt_and_reference(piece.tokens.tolist(), piece.targets.tolist())
    assert found is not None
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", [[USER], [USER, SAID, USER]], ids=["one", "three"])
def test_a_question_is_asked_as_if_it_had_an_answer(tokenizer, family, turns):
    """And as a chat asks it."""
    encoder = ExampleEncoder(tokenizer(family))
    asked, end = split_of(encoder, OpenQuestion(turns))
    known, _ = split_of(encoder, Chat([*turns, SAID]))
    assert asked == encoder.prompt(turns)
    shorter = min(len(asked), len(known))
    assert asked[:shorter] == known[:shorter]
    # Two open a thought where an answer is to begin, and write none into one that has none.
    assert asked == known or family in ("deepseek_r1", "gemma4")
    assert end[0] in by_template(tokenizer(family))
    assert len(end) == 1


@pytest.mark.parametrize("prompt", ["How many?", "Sum:\n", "2 + 3 = ", "Wie viel? ü 🙂"])
@pytest.mark.parametrize("system", [None, "Count."])
def test_without_a_template_too(make_tokenizer, prompt, system):
    encoder = ExampleEncoder(make_tokenizer(None), chat=ChatOptions(system=system))
    asked, end = split_of(encoder, OpenQuestion(prompt))
    assert asked == split_of(encoder, Pair(prompt, "five"))[0]
    assert end == [make_tokenizer(None).eos_token_id]


def test_a_text_is_what_the_user_says_where_there_is_a_template(make_tokenizer):
    encoder = ExampleEncoder(make_tokenizer())
    assert split_of(encoder, OpenQuestion("How many?")) == split_of(
        encoder, OpenQuestion([{"role": "user", "content": "How many?"}])
    )


def test_without_a_token_that_ends_answers_nothing_is_asked(make_tokenizer):
    (made,) = ExampleEncoder(make_tokenizer(None, None)).encode([OpenQuestion("How many?")])
    assert isinstance(made, BadRecord)
    assert "eos_token" in made.hint


MIXED = [{"prompt": "a?", "answer": "x"}, {"prompt": "b?", "completion": "y"}, {"prompt": "c?"}]


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparation alone: the grader is not what this is about."""
    from launcher.objectives.grpo.objective import Grpo

    monkeypatch.setattr(Grpo, "settle", Objective.settle)


@pytest.mark.usefixtures("unsettled")
def test_prepared_data_counts_them_and_shows_what_they_are(
    configure: Callable[..., Config], make_data: Callable[..., Path], capsys
) -> None:
    config = configure(objective="grpo", train=make_data(MIXED))
    assert not list(preview.problems(config))
    folder = prepare(config)["train"]
    cache = TokenCache.open(str(folder))
    assert cache.index.counts.asked == 2
    assert [is_asked(cache, i) for i in range(3)] == [True, False, True]
    assert "2 without an answer" in capsys.readouterr().err
    assert show.main([str(folder)]) == 0
    assert capsys.readouterr().out.count("no answer: the last token stands for it") == 2


@pytest.mark.usefixtures("unsettled")
def test_others_have_data_of_their_own_and_refuse_them(
    configure: Callable[..., Config], make_data: Callable[..., Path]
) -> None:
    data = make_data([MIXED[1], MIXED[0]])
    prepare(configure(objective="grpo", train=data))
    with pytest.raises(LauncherError, match="no field 'completion'"):
        prepare(configure(train=data))


@pytest.mark.usefixtures("unsettled")
def test_the_template_says_how_answers_end_that_nobody_has_written(
    configure: Callable[..., Config], make_data: Callable[..., Path], make_tokenizer
) -> None:
    tokenizer = make_tokenizer(eos="<pad>")
    config = configure(objective="grpo", train=make_data([MIXED[2]]))
    folders = prepare(config, tokenizer)
    assert set(by_template(tokenizer)) <= set(taught(folders, tokenizer))
