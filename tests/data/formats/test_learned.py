"""What objectives learn from, and what is said of data that they do not learn from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.config.schema import Config, ObjectiveConfig, Ranking, variants
from launcher.config.schema.kinds import KINDS, readable
from launcher.core.errors import ConfigError
from launcher.data import show
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.formats.answers import question_of
from launcher.data.formats.base import Chat, Pair, Preference, Ranked, Text, Unpaired
from launcher.data.formats.learned import examples_for, refusal
from launcher.data.prepare.preparation import prepare
from launcher.objectives.preference.encoder import MARGIN
from support import hints

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


@dataclass(kw_only=True, slots=True)
class PairsAlone(ObjectiveConfig):
    learns: ClassVar[tuple[str, ...]] = ("pairs",)


@dataclass(kw_only=True, slots=True)
class VerdictsAlone(ObjectiveConfig):
    learns: ClassVar[tuple[str, ...]] = ("unpaired",)


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


ASKED = [{"role": "user", "content": "q"}]
GOOD, FAIR, BAD = map(said, ("good", "fair", "bad"))
PAIR = Preference(ASKED, GOOD, BAD, [{"name": "f"}], {"x": 1}, margin=2.0)
RANKED = Ranked(ASKED, (GOOD, FAIR, BAD), (3.0, 2.0, 1.0))
JUDGED = Unpaired(ASKED, GOOD, True)


def test_what_is_taken_is_made_of_what_is_there() -> None:
    pairs, verdicts = PairsAlone(), VerdictsAlone()
    assert examples_for(PAIR, pairs) == [PAIR]
    assert examples_for(RANKED, pairs) == RANKED.pairs()
    assert examples_for(RANKED, pairs, Ranking.extremes) == RANKED.pairs(extremes=True)
    assert examples_for(JUDGED, verdicts) == [JUDGED]
    beside = [{"name": "f"}], {"x": 1}
    sides = [Unpaired(ASKED, GOOD, True, *beside), Unpaired(ASKED, BAD, False, *beside)]
    assert examples_for(PAIR, verdicts) == sides
    # One in the middle would be good against one answer and bad against another.
    extremes = [Unpaired(ASKED, GOOD, True), Unpaired(ASKED, BAD, False)]
    assert examples_for(RANKED, verdicts) == extremes


def split(name: str, records: list[dict[str, Any]], columns: dict[str, str]) -> list[Any]:
    return [question_of(record, name, columns) for record in records]


TURNS = [*ASKED, *GOOD]
WORSE = [*ASKED, *BAD]
#: Records of one prompt in each layout, and one of another.
TOGETHER: list[tuple[str, dict[str, str], list[dict[str, Any]], dict[str, Any]]] = [
    (
        "preference",
        {},
        [{"prompt": "q", "chosen": a, "rejected": "b"} for a in "xyz"],
        {"prompt": "r", "chosen": "x", "rejected": "b"},
    ),
    (
        "preference",
        {},
        [{"chosen": TURNS, "rejected": WORSE}, {"chosen": WORSE, "rejected": TURNS}],
        {"chosen": GOOD, "rejected": BAD},
    ),
    (
        "preference",
        {},
        [{"chosen": f"\n\nHuman: q\n\nAssistant: {a}", "rejected": "b"} for a in "xyz"],
        {"chosen": "\n\nHuman: r\n\nAssistant: x", "rejected": "b"},
    ),
    (
        "preference",
        {},
        [
            {"input": {"messages": ASKED}, "preferred_output": one, "non_preferred_output": BAD}
            for one in (GOOD, FAIR)
        ],
        {"input": {"messages": TURNS}, "preferred_output": GOOD, "non_preferred_output": BAD},
    ),
    (
        "unpaired",
        {"prompt": "asked"},
        [{"asked": "q", "completion": a, "label": True} for a in "xyz"],
        {"asked": "r", "completion": "x", "label": True},
    ),
    (
        "unpaired",
        {},
        [{"messages": TURNS, "label": True}, {"messages": WORSE, "label": False}],
        {"messages": GOOD, "label": True},
    ),
    (
        "ranked",
        {},
        [{"instruction": "i", "input": "q", "answers": ["a", b], "ranks": [1, 2]} for b in "xyz"],
        {"instruction": "i", "input": "r", "answers": ["a", "x"], "ranks": [1, 2]},
    ),
]


@pytest.mark.parametrize(("name", "columns", "records", "other"), TOGETHER)
def test_all_answers_to_a_prompt_are_held_out_or_none(
    name: str, columns: dict[str, str], records: list[dict[str, Any]], other: dict[str, Any]
) -> None:
    first, *rest, last = split(name, [*records, other], columns)
    assert all(own == first for own in rest)
    assert last != first
    # Of other formats each record counts for itself.
    assert split("chat", records, columns) == records


EXAMPLES = [Chat([*ASKED, *GOOD]), Pair("q", "a"), Text("t"), PAIR, RANKED, JUDGED]


@pytest.mark.parametrize("name", sorted(variants.OPTIONS["objective"]))
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_an_example_is_learned_or_refused_with_the_objective_that_learns_it(
    name: str, example: Any
) -> None:
    options = variants.OPTIONS["objective"][name]()
    refused = refusal(example, options)
    if example.kind in readable(options.learns):
        assert refused is None
        return
    assert refused is not None
    assert KINDS[example.kind] in refused.found
    if variants.learners(example.kind):
        ((word,),) = hints.ways(refused.hint)
        typed = compose.compose([word, "model=tiny", "data.train=x.jsonl"]).objective
        assert refusal(example, typed) is None


@pytest.mark.parametrize("name", sorted(variants.OPTIONS["objective"]))
@pytest.mark.parametrize("format_name", sorted(variants.FORMATS))
def test_a_format_of_another_kind_is_found_before_anything_starts(
    name: str, format_name: str, tiny_llama: Path
) -> None:
    words = ["model=tiny", "data.train=x.jsonl", "batch.sequences=8", "eval=none"]
    own = [f"objective={name}"]
    if name == "distill":
        own.append(f"objective.teacher={tiny_llama}")
    if name == "grpo":
        own.append("objective.grader={type: numeric_match, name: sum, reference: '1'}")
    config = compose.compose([*words, *own, f"data={format_name}"])
    found = checks.check(config, world_size=1, has_gpu=False)
    mine = [p for p in found if f"{name} with data.format={format_name}" in p.found]
    kind = variants.kind_of_format(format_name)
    if kind in readable(config.objective.learns):
        assert mine == [] or (name in ("sft", "grpo") and format_name == "text")
        return
    (problem,) = mine
    for typed in hints.ways(problem.hint):
        is_other = any(word.startswith("objective=") for word in typed)
        mended = compose.compose(
            [*words, *([] if is_other else own), f"data={format_name}", *typed]
        )
        assert checks.check(mended, world_size=1, has_gpu=False) == []


RECORDS = {
    "pairs": [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(3)],
    "unpaired": [{"prompt": f"p {i}", "completion": "a", "label": i < 2} for i in range(3)],
    "ranked": [{"prompt": "p", "answers": ["a", "b"], "scores": [1, 2]} for _ in range(3)],
    "answers": [{"prompt": f"p {i}", "completion": "a"} for i in range(3)],
}


@pytest.mark.parametrize("kind", ["pairs", "unpaired"])
def test_judged_answers_in_a_run_that_learns_answers(
    configure: Configure, make_data: MakeData, kind: str
) -> None:
    data = make_data(RECORDS[kind])
    with pytest.raises(ConfigError, match=r"sft with \w+ data") as caught:
        prepare(configure(train=data))
    hint = caught.value.problems[0].hint
    assert variants.how_to_learn(kind) in hint
    *_, answers = hints.ways(hint)
    words = dict(word.split("=", 1) for word in answers)
    columns = {"weight": "label"} if kind == "unpaired" else {"completion": "chosen"}
    assert words["data"] == "prompt"
    config = configure(train=data, format="prompt", columns=columns)
    kept = TokenCache.open(str(prepare(config)["train"]))
    assert len(kept) == (2 if kind == "unpaired" else 3)


def test_ranked_answers_in_a_run_that_learns_answers(
    configure: Configure, make_data: MakeData
) -> None:
    with pytest.raises(ConfigError, match="sft with ranked data") as caught:
        prepare(configure(train=make_data(RECORDS["ranked"])))
    assert caught.value.problems[0].where == "objective.name"
    assert caught.value.problems[0].hint


@pytest.mark.parametrize("kind", ["answers", "unpaired"])
def test_other_data_in_a_run_that_learns_pairs(
    configure: Configure, make_data: MakeData, kind: str
) -> None:
    with pytest.raises(ConfigError, match=r"dpo with \w+ data") as caught:
        prepare(configure(train=make_data(RECORDS[kind]), objective="dpo"))
    hint = caught.value.problems[0].hint
    learns = {"answers": "objective=sft", "unpaired": "objective=kto"}[kind]
    assert [learns] in hints.ways(hint)


def dpo(configure: Configure, train: Any, **data: Any) -> TokenCache | JoinedCache:
    return TokenCache.open(str(prepare(configure(train=train, objective="dpo", **data))["train"]))


def margins(cache: TokenCache | JoinedCache) -> list[list[float]]:
    return [cache.column(MARGIN, i).tolist() for i in range(len(cache))]


def answers(cache: TokenCache | JoinedCache, record: int, tokenizer: Any) -> list[str]:
    """What is learned of each document."""
    tokens, targets = cache.record(record)
    found, start = [], 0
    for length in cache.documents(record):
        part = slice(start, start + length)
        found.append(tokenizer.decode(tokens[part][targets[part] == 1].tolist()))
        start += length
    return found


def test_every_kind_of_judged_answers_becomes_pairs(
    configure: Configure, make_data: MakeData, make_tokenizer: Callable[..., Any]
) -> None:
    rated = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    rated |= {"score_chosen": 4, "score_rejected": 1.5}
    cache = dpo(configure, make_data([rated, RECORDS["pairs"][0]]))
    assert margins(cache) == [[2.5, 2.5], [0.0, 0.0]]
    said = ["good<|im_end|>", "bad<|im_end|>"]
    assert answers(cache, 0, make_tokenizer()) == said
    scored = [
        {"response": text, "score": score} for text, score in zip("bca", (2, 1, 5), strict=True)
    ]
    data = make_data([{"prompt": "p", "completions": scored, "weight": 2}], "ranked.jsonl")
    cache = dpo(configure, data)
    assert (cache.index.counts.read, len(cache)) == (1, 3)
    assert [answers(cache, i, make_tokenizer()) for i in range(3)] == [
        ["a<|im_end|>", "b<|im_end|>"],
        ["a<|im_end|>", "c<|im_end|>"],
        ["b<|im_end|>", "c<|im_end|>"],
    ]
    assert margins(cache) == [[3.0] * 2, [4.0] * 2, [1.0] * 2]
    assert [cache.weight(i) for i in range(3)] == [2.0] * 3
    extremes = dpo(configure, data, ranked="extremes")
    assert margins(extremes) == [[4.0, 4.0]]


def test_formats_of_pairs_are_mixed(configure: Configure, make_data: MakeData) -> None:
    first = make_data(RECORDS["pairs"], "pairs.jsonl")
    asked = [{"asked": f"r {i}", "answers": ["a", "b"], "scores": [1, 2]} for i in range(4)]
    second = make_data(asked, "ranked.jsonl")
    sources = [
        {"path": str(first), "weight": 1},
        {"path": str(second), "weight": 3, "columns": {"prompt": "asked"}},
    ]
    cache = dpo(configure, sources)
    assert isinstance(cache, JoinedCache)
    assert [len(part) for part in cache.parts] == [3, 4]
    assert [part.index.format for part in cache.parts] == ["preference", "ranked"]
    assert margins(cache) == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 4


def test_a_prompt_that_fills_the_length_leaves_the_answers_whole_by_option(
    configure: Configure,
    make_data: MakeData,
    make_tokenizer: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = {"prompt": "how many foxes? " * 40, "chosen": "seven of them", "rejected": "none"}
    data = make_data([RECORDS["pairs"][0], long])
    cache = dpo(configure, data, max_length=64)
    assert (len(cache), cache.index.counts.overlong) == (1, 1)
    assert "1 of 2 records are dropped" in (said := capsys.readouterr().err)
    (typed,) = hints.ways(said.partition("HINT: ")[2].partition("\n")[0])
    assert typed == ["data.overlong=cut_prompt"]
    cache = dpo(configure, data, max_length=64, overlong="cut_prompt")
    assert (len(cache), cache.index.counts.truncated, cache.index.counts.dropped) == (2, 1, 0)
    assert answers(cache, 1, make_tokenizer()) == ["seven of them<|im_end|>", "none<|im_end|>"]
    assert len(cache.record(1)[0]) <= 64
    # Both prompts keep as much.
    tokens, targets = cache.record(1)
    first, second = cache.documents(1)
    assert first - targets[:first].sum() == second - targets[first:].sum()
    # Conversations that end with their answer are cut alike.
    talk = make_data([{"prompt": long["prompt"], "completion": "seven"}], "talk.jsonl")
    config = configure(train=talk, max_length=40, overlong="cut_prompt")
    cache = TokenCache.open(str(prepare(config)["train"]))
    assert answers(cache, 0, make_tokenizer()) == ["seven<|im_end|>"]
    assert len(cache.record(0)[0]) == 40


def test_both_answers_are_shown_with_what_is_learned_in_each(
    configure: Configure, make_data: MakeData, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data([{"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 2}])
    folder = prepare(configure(train=data, objective="dpo"))["train"]
    assert show.main([str(folder)]) == 0
    said = capsys.readouterr().out
    head, chosen, rejected, *_ = said.split("\n---")[0], *said.split("\n--- ")[1:]
    assert head.startswith(f"{data}:1  record 0, ")
    assert head.endswith(", margin 2")
    assert chosen.startswith("chosen: ")
    assert "user\np<|im_end|>" in chosen
    assert "[[good<|im_end|>]]" in chosen
    assert rejected.startswith("rejected: ")
    assert "[[bad<|im_end|>]]" in rejected
