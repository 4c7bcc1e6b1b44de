"""ShareGPT, classification, preference pairs, parts of messages, a user's own file, weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import fingerprint
from launcher.config.check import checks
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, LauncherError
from launcher.data import formats
from launcher.data.cache import Counts, TokenCache
from launcher.data.formats import BadRecord, Chat, Labelled, Preference, Reader
from launcher.data.pack.loader import make_row
from launcher.data.prepare.preparation import prepare
from support import caches
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]

USER = {"role": "user", "content": "2 + 2?"}
GOOD = {"role": "assistant", "content": "4"}
BAD = {"role": "assistant", "content": "5"}


def read(name: str, record: dict[str, Any], **options: Any) -> Any:
    result = Reader(name, options.get("columns", {}), options.get("labels", ())).read(record)
    return result if isinstance(result, BadRecord) else result[0]


def turns(*pairs: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in pairs], **extra}


def test_sharegpt_speakers_become_roles() -> None:
    found = read("sharegpt", turns(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c")))
    assert found.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_sharegpt_tools_calls_system_and_weight() -> None:
    call = json.dumps({"name": "add", "arguments": {"a": 1}})
    record = turns(
        ("human", "1+1?"),
        ("function_call", call),
        ("observation", "2"),
        ("gpt", "two"),
        system="Be kind.",
        tools=json.dumps([{"name": "add"}]),
    )
    record["conversations"][3]["weight"] = 0
    record["conversations"].append({"from": "gpt", "value": "end"})
    found = read("sharegpt", record)
    assert [m["role"] for m in found.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "assistant",
    ]
    assert found.messages[2]["tool_calls"] == [{"function": json.loads(call)}]
    assert found.tools == [{"name": "add"}]
    assert found.context_only == {4}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({}, "'conversations' is missing"),
        (turns(), "an empty list"),
        (turns(("narrator", "x")), "turn 1 is from 'narrator'"),
        (turns(("human", "x")), "no assistant turn"),
        (turns(("human", 3), ("gpt", "x")), "content of message 1 (user) is a number"),
        (turns(("human", "x"), ("function_call", "{")), "turn 2: the function call is no JSON"),
        ({"conversations": ["x"]}, "message 1 is text"),
        (turns(("human", "x"), ("gpt", "y"), system=1), "'system' is a number"),
        (turns(("human", "x"), ("gpt", "y"), tools="["), "'tools' is no JSON"),
    ],
)
def test_sharegpt_refuses(record: dict[str, Any], found: str) -> None:
    assert found in read("sharegpt", record).found


def test_text_and_label_become_prompt_and_completion() -> None:
    assert read("classification", {"text": "hi", "label": "greeting"}) == Labelled("hi", "greeting")
    assert read("classification", {"text": "hi", "label": 1}) == Labelled("hi", "1")
    names = ["no", "yes"]
    for label in (1, "1", "yes"):
        assert read("classification", {"text": "hi", "label": label}, labels=names) == Labelled(
            "hi", "yes"
        )


@pytest.mark.parametrize(
    ("record", "labels", "found"),
    [
        ({"text": "hi", "label": 2}, ["no", "yes"], "label 2 is no index"),
        ({"text": "hi", "label": -1}, ["no", "yes"], "label -1 is no index"),
        ({"text": "hi", "label": "maybe"}, ["no", "yes"], "'maybe' is not in data.labels"),
        ({"text": "hi", "label": True}, [], "'label' is a truth value"),
        ({"text": "hi", "label": 0.5}, [], "'label' is a number, neither"),
        ({"text": "hi", "label": " "}, [], "the label is empty"),
        ({"text": "", "label": "x"}, [], "the text is empty"),
        ({"text": "hi"}, [], "no field 'label'"),
        ({"label": "x"}, [], "no field 'text'"),
    ],
)
def test_classification_refuses(record: dict[str, Any], labels: list[str], found: str) -> None:
    assert found in read("classification", record, labels=labels).found


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "input": {"messages": [USER]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ],
)
def test_preference_layouts_are_one(record: dict[str, Any]) -> None:
    assert formats.detect([record], {}) == "preference"
    assert read("preference", record) == Preference([USER], [GOOD], [BAD])


def test_preference_without_a_prompt_has_whole_texts() -> None:
    assert read("preference", {"chosen": "4", "rejected": "5"}) == Preference([], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "chosen is empty"),
        ({"prompt": "p", "chosen": 4, "rejected": "a"}, "'chosen' is a number"),
        ({"prompt": "p", "chosen": [USER], "rejected": [BAD]}, "chosen ends with user"),
        ({"prompt": [{}], "chosen": "a", "rejected": "b"}, "message 1 has no role"),
    ],
)
def test_preference_refuses(record: dict[str, Any], found: str) -> None:
    assert found in read("preference", record).found


def test_pairs_are_not_for_supervised_fine_tuning(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigError, match="sft with preference data") as caught:
        prepare(configure(train=data))
    hint = caught.value.problems[0].hint
    found = checks.check(configure(train=data, format="preference"), world_size=1, has_gpu=False)
    assert any("sft with data.format=preference" in str(problem) for problem in found)
    assert "data.columns={completion: chosen}" in hint
    config = configure(train=data, format="prompt", columns={"completion": "chosen"})
    assert len(TokenCache.open(str(prepare(config)["train"]))) == 1


def test_parts_of_text_are_joined_and_others_refused_by_name() -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    record = {"messages": [{"role": "user", "content": parts}, GOOD]}
    assert read("chat", record) == Chat([USER, GOOD])
    parts.append({"type": "image_url", "text": "x"})
    assert "message 1 has a part of type 'image_url'" in read("chat", record).found
    parts[2] = "x"  # type: ignore[call-overload]
    assert "a part of message 1 is text without a type" in read("chat", record).found


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from launcher.data.formats import BadRecord, Pair

@dataclass
class Format:
    word: str = "A"

    def read(self, record):
        if "q" not in record:
            raise BadRecord("no q")
        return Pair(record["q"], f"{self.word} {record['a']}")
"""


def test_an_own_format_is_a_file(configure: Configure, make_data: MakeData, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    data = make_data([{"q": "1?", "a": "one"}])
    config = configure(train=data, format=str(own))
    assert not [p for p in checks.check(config, world_size=1, has_gpu=False) if "data" in p.where]
    before = fingerprint.data_keys(config)
    cache = TokenCache.open(str(prepare(config)["train"]))
    assert cache.index.records == 1
    own.write_text(OWN.replace('"A"', '"B"'))
    assert fingerprint.data_keys(config) != before


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("def", "cannot be used: SyntaxError"),
        ("x = 1", "has no attribute 'Format'"),
        ("class Format: pass", "has no method read"),
    ],
)
def test_a_file_that_is_no_format(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "own.py").write_text(content)
    with pytest.raises(ConfigError, match=found):
        Reader(str(tmp_path / "own.py"), {})


def test_an_own_format_that_fails_on_a_record_names_its_line(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for record, found in (({"q": "1?"}, "KeyError: 'a'"), ({}, "no q")):
        data = make_data([{"q": "1?", "a": "one"}, record])
        with pytest.raises(LauncherError, match=found) as caught:
            prepare(configure(train=data, format=str(tmp_path / "own.py")))
        assert caught.value.problems[0].where == f"{data}:2"


def test_weights_scale_loss_and_denominator(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    records = [chat("a", "b"), chat("c", "d e f", weight=2.5), chat("g", "h", weight=0)]
    cache = TokenCache.open(str(prepare(configure(train=make_data(records)))["train"]))
    assert cache.index.counts == Counts(read=3, dropped=1)
    assert [cache.weight(i) for i in range(2)] == [1.0, 2.5]
    row = make_row(cache, [1, 0])
    assert row.weights is not None
    counts = [int(cache.record(i)[1][1:].sum()) for i in (1, 0)]
    assert row.weights.tolist() == [2.5] * counts[0] + [1.0] * counts[1]
    from launcher.config.schema import SftConfig
    from launcher.objectives.sft import Sft

    assert Sft(SftConfig()).weight(row) == 2.5 * counts[0] + counts[1]
    plain = TokenCache.open(
        str(prepare(configure(train=make_data([chat("a", "b", weight=1)], "plain.jsonl")))["train"])
    )
    assert plain.weights is None
    assert make_row(plain, [0]).weights is None


@pytest.mark.parametrize("weight", [-1, "much", True, [1], 1e30, float("nan")])
def test_weights_that_are_none(weight: Any) -> None:
    assert (
        "the record has weight"
        in read("prompt", {"prompt": "a", "completion": "b", "weight": weight}).found
    )


@settings(deadline=None)
@given(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=6), st.floats(0, 0.3))
def test_a_weighted_loss_is_that_of_repeated_targets(
    weights: list[float], smoothing: float
) -> None:
    from launcher.model.head import _LogitsLoss

    torch.manual_seed(0)
    logits = torch.randn(len(weights), 7, requires_grad=True)
    targets = torch.arange(len(weights)) % 7
    scale = torch.tensor(weights)
    total, _ = _LogitsLoss.apply(logits.clone(), targets, smoothing, scale, False)
    (got,) = torch.autograd.grad(total, logits)
    each = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )
    expected = (each * scale).sum()
    (wanted,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(total, expected, atol=1e-4)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    cache = caches.write(tmp_path, [([1, 2], [0, 1])] * 2, weights=[1, 0.5])
    assert [TokenCache.open(tmp_path, verify=True).weight(i) for i in (0, 1)] == [1, 0.5]
    assert cache.weights is not None


def test_files_of_two_formats_are_told_apart(configure: Configure, make_data: MakeData) -> None:
    first = make_data([chat("a", "b")], "a.jsonl")
    second = make_data([{"prompt": "a", "completion": "b"}], "b.jsonl")
    with pytest.raises(LauncherError, match="the records are prompt, those of") as caught:
        prepare(configure(train=first.parent))
    assert caught.value.problems[0].where == str(second)
    config = configure(train=[{"path": str(first)}, {"path": str(second)}])
    assert TokenCache.open(str(prepare(config)["train"])).index.records == 2


def test_two_schemas_in_one_file_stop_at_the_line(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([chat("a", "b"), {"prompt": "a", "completion": "b"}])
    with pytest.raises(LauncherError, match="no field 'messages'") as caught:
        prepare(configure(train=data))
    assert caught.value.problems[0].where == f"{data}:2"


def test_labels_beside_text_do_not_matter_where_every_token_is_learned(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([{"text": "some text", "label": "x"}])
    for objective, name in (("text", "text"), ("sft", "classification")):
        config = configure(train=data, objective=objective)
        assert TokenCache.open(str(prepare(config)["train"])).index.format == name
