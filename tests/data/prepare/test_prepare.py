"""Preparation in one process: what is written, what is refused, when it is done again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError, LauncherError
from launcher.data.cache import Counts, TokenCache
from launcher.data.prepare.preparation import prepare
from launcher.data.prepare.worker import unit_hash
from support import caches
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]
GOOD = [chat(f"what is {i}?", f"it is {i}") for i in range(40)]


def train(config: Config) -> TokenCache:
    folder = prepare(config)["train"]
    assert folder
    return TokenCache.open(folder, verify=True)


def problem(config: Config) -> Any:
    with pytest.raises(LauncherError) as caught:
        prepare(config)
    assert not list(fingerprint.cache_root(config).glob(".*.tmp"))
    assert fingerprint.lookup(config) is None
    return caught.value.problems[0]


def text_of(config: Config, cache: TokenCache, record: int, learned: bool = False) -> str:
    from launcher.data.tokenizer import load_tokenizer

    tokens, targets = cache.record(record)
    return str(load_tokenizer(config.model).decode(tokens[targets == 1] if learned else tokens))


def test_chat_records_become_tokens_and_targets(configure: Configure, make_data: MakeData) -> None:
    config = configure(train=make_data([GOOD[3], b"", GOOD[5]]))
    cache = train(config)
    assert text_of(config, cache, 0) == (
        "<|im_start|>user\nwhat is 3?<|im_end|>\n<|im_start|>assistant\nit is 3<|im_end|>\n"
    )
    assert text_of(config, cache, 1, learned=True) == "it is 5<|im_end|>"
    assert cache.where(1) == f"{config.data.train}:3"
    assert cache.index.format == "chat"
    assert cache.index.counts == Counts(read=2)


def test_prompt_and_alpaca_are_chats_where_there_is_a_template(
    configure: Configure, make_data: MakeData
) -> None:
    for name, record in (
        ("p.jsonl", {"prompt": "what is 3?", "completion": "it is 3"}),
        ("a.jsonl", {"instruction": "what is 3?", "input": "", "output": "it is 3"}),
    ):
        config = configure(train=make_data([record], name))
        assert text_of(config, train(config), 0).startswith(
            "<|im_start|>user\nwhat is 3?<|im_end|>"
        )


def test_prompt_without_template_ends_with_eos(
    configure: Configure, make_data: MakeData, make_tokenizer: Callable[..., Any]
) -> None:
    data = make_data([{"q": "what is 3?", "a": "it is 3"}, {"q": "Say:\n", "a": "ü 🙂"}])
    columns = {"prompt": "q", "completion": "a"}
    config = configure(train=data, columns=columns, system="Be kind.")
    cache = TokenCache.open(str(prepare(config, make_tokenizer(None))["train"]))
    assert text_of(config, cache, 0) == "Be kind.\n\nwhat is 3?\nit is 3<|im_end|>"
    assert text_of(config, cache, 0, learned=True) == "it is 3<|im_end|>"
    assert text_of(config, cache, 1, learned=True) == "ü 🙂<|im_end|>"


def test_text_is_learned_whole_and_ends_with_eos(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("two")
    (folder / "a.txt").write_text("one\n")
    (folder / "README").write_text("not data")
    config = configure(train=folder)
    cache = train(config)
    assert [text_of(config, cache, i, learned=True) for i in range(len(cache))] == [
        "one\n<|im_end|>",
        "two<|im_end|>",
    ]


def test_further_sets_have_folders_and_formats_of_their_own(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(train=make_data(GOOD), columns={"prompt": "q", "completion": "a"})
    config.data.format = "prompt"
    config.data.train = str(make_data([{"q": "what is 3?", "a": "it is 3"}], "pairs.jsonl"))
    config.eval.general = str(make_data([{"text": "a fine day"}], "general.jsonl"))
    config.eval.new = {"asked": str(make_data([{"q": "3?", "a": "3"}], "asked.jsonl"))}
    folders = prepare(config)
    assert set(folders) == {"train", "validation", "general", "new.asked"}
    general, asked = (TokenCache.open(str(folders[name])) for name in ("general", "new.asked"))
    assert text_of(config, general, 0, learned=True) == "a fine day<|im_end|>"
    assert text_of(config, asked, 0, learned=True) == "3<|im_end|>"
    assert fingerprint.lookup(config) == folders


def test_a_further_set_that_is_not_there_is_named_by_its_key(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(train=make_data(GOOD))
    config.eval.new = {"asked": "nowhere.jsonl"}
    with pytest.raises(DataError, match=r"eval\.new\.asked"):
        prepare(config)


def test_objective_text_learns_every_token(configure: Configure, make_data: MakeData) -> None:
    cache = train(configure(train=make_data(GOOD), objective="text"))
    assert cache.index.target_tokens == cache.index.tokens


def test_workers_give_the_same_cache_as_one_process(
    configure: Configure, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.data.sources import limits

    monkeypatch.setattr(limits, "CHUNK_BYTES", 512)
    data = make_data(GOOD)
    single = train(configure(train=data, cache=str(tmp_path / "1")))
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1 << 20)
    whole = train(configure(train=data, cache=str(tmp_path / "2")))
    assert single.index == whole.index


@pytest.mark.parametrize(
    ("overlong", "sequences", "counts"),
    [
        ("truncate", 2, Counts(read=3, truncated=1, dropped=1, overlong=1)),
        ("cut_prompt", 2, Counts(read=3, truncated=1, dropped=1, overlong=1)),
        ("drop", 1, Counts(read=3, dropped=2, overlong=2)),
        ("split", 7, Counts(read=3, split=2)),
    ],
)
def test_overlong_records(
    configure: Configure,
    make_data: MakeData,
    capsys: pytest.CaptureFixture[str],
    overlong: str,
    sequences: int,
    counts: Counts,
) -> None:
    # Short; a long answer; a prompt so long that no target is left in the first 40 tokens.
    data = make_data([chat("a", "b"), chat("a", "0" * 100), chat("0" * 100, "b")])
    cache = train(configure(train=data, overlong=overlong, max_length=40))
    assert cache.index.counts == counts
    assert cache.index.longest <= 40
    assert all(cache.record(i)[1][1:].any() for i in range(len(cache)))
    if overlong == "split":
        assert len(cache) < sequences
    else:
        assert len(cache) == sequences
    said = capsys.readouterr().err
    for deed in ("truncated", "split", "dropped"):
        number = getattr(counts, deed)
        assert (f"{number} {deed}" in said) == bool(number)
    # What is dropped against one's wish is told with the way to keep it.
    assert ("1 of 3 records are dropped" in said) == (overlong in ("truncate", "cut_prompt"))
    assert ("data.overlong=cut_prompt keeps" in said) == (overlong == "truncate")
    assert ("answers alone are too long" in said) == (overlong == "cut_prompt")


def test_limit_takes_the_first_records_of_each_split(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([*GOOD[:7], b"{broken"])
    cache = train(configure(train=data, limit=7))
    assert cache.index.counts.read == 7
    assert cache.origins[:, 1].tolist() == list(range(1, 8))
    config = configure(train=make_data(GOOD, "b.jsonl"), limit=3, validation_share=0.3)
    for folder in prepare(config).values():
        assert len(TokenCache.open(str(folder))) == 3


def test_a_file_that_is_wholly_held_out_is_told_so(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(train=make_data(GOOD[:1]), validation_share=0.99)
    with pytest.raises(DataError, match="all of them are held out for validation") as caught:
        prepare(config)
    assert "data.validation_share=0" in str(caught.value)
    config.data.validation_share = 0
    assert len(train(config)) == 1


def test_a_record_never_changes_sides_when_the_data_grows(
    configure: Configure, make_data: MakeData
) -> None:
    def sides(records: list[dict], name: str) -> tuple[set[int], set[int]]:
        config = configure(train=make_data(records, name), validation_share=0.4)
        found = prepare(config)
        lines = [TokenCache.open(str(found[s])).origins[:, 1] for s in ("train", "validation")]
        numbers = [{GOOD.index(records[line - 1]) for line in side} for side in lines]
        return numbers[0], numbers[1]

    small_train, small_validation = sides(GOOD[:20], "small.jsonl")
    large_train, large_validation = sides([*GOOD[20:], *GOOD[:20]], "large.jsonl")
    assert small_train | small_validation == set(range(20))
    assert not small_train & small_validation
    assert small_validation
    assert small_train <= large_train
    assert small_validation <= large_validation
    assert small_validation == {i for i in range(20) if unit_hash(GOOD[i], 0) < 0.4}


def test_key_order_and_layout_do_not_move_a_record() -> None:
    assert unit_hash({"a": 1, "b": "ü"}, 3) == unit_hash({"b": "ü", "a": 1}, 3)
    values = np.array([unit_hash({"n": i}, 0) for i in range(2000)])
    assert abs(values.mean() - 0.5) < 0.03
    assert abs((values < 0.1).mean() - 0.1) < 0.03


def test_validation_of_its_own(configure: Configure, make_data: MakeData) -> None:
    validation = make_data([{"prompt": "a", "completion": "b"}], "v.jsonl")
    config = configure(train=make_data(GOOD), validation=validation, validation_share=0.5)
    found = prepare(config)
    assert len(TokenCache.open(str(found["train"]))) == len(GOOD)
    index = TokenCache.open(str(found["validation"])).index
    assert (index.records, index.format) == (1, "prompt")


def test_a_share_that_holds_nothing_gives_no_validation(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(train=make_data(GOOD[:3]), validation_share=1e-9)
    found = prepare(config)
    assert found["validation"] is None
    assert fingerprint.lookup(config) == found


def test_mixed_sources_keep_their_origins(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD[0]))
    (tmp_path / "b.json").write_text(json.dumps(GOOD[1:3]))
    config = configure(train=[str(tmp_path / "b.json"), str(tmp_path / "*.jsonl")])
    cache = train(config)
    assert [Path(cache.where(i)).name for i in range(3)] == ["b.json:1", "b.json:2", "a.jsonl:1"]


# Bad input: exit code 3 and file:line, unless it is the config's fault.


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"messages": [}', "broken JSON at column 15"),
        (b'{"messages": "\xff"}', "invalid UTF-8: byte 0xff at position 15"),
        (b"[]", "the record is a list"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no assistant turn"),
        (b'{"text": "another schema"}', "no field 'messages'"),
        (json.dumps(chat("a", "\ud800")).encode(), "half of a surrogate pair"),
    ],
)
def test_a_bad_line_stops_with_its_place(
    configure: Configure, make_data: MakeData, line: bytes, found: str
) -> None:
    data = make_data([*GOOD[:4], line, *GOOD[4:]])
    config = configure(train=data)
    error = problem(config)
    assert error.where == f"{data}:5"
    assert found in error.found
    assert error.hint


def test_bad_records_are_skipped_counted_and_said(
    configure: Configure, make_data: MakeData, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data([b"{", *GOOD[:4], *[b"[]"] * 7, GOOD[4]])
    cache = train(configure(train=data, bad_records="skip", format="chat"))
    assert cache.index.counts == Counts(read=13, skipped=8)
    assert cache.origins[:, 1].tolist() == [2, 3, 4, 5, 13]
    said = capsys.readouterr().err
    assert f"skipped {data}:1: broken JSON" in said
    assert f"skipped {data}:9" in said
    assert f"skipped {data}:10" not in said
    assert "8 skipped" in said


def test_roles_that_the_template_refuses(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    from support.chats import GEMMA

    template = tmp_path / "gemma.jinja"
    template.write_text(GEMMA)
    data = make_data([GOOD[0], chat("a", "b", "c", "d")])
    config = configure({"chat_template": str(template)}, train=data, system="Be kind.")
    error = problem(config)
    assert error.where == f"{data}:1"
    assert "System role not supported" in error.found


def test_tokenizer_without_template(
    configure: Configure, make_data: MakeData, tokenizer_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tokenizer_folder, bare)
    options = json.loads((bare / "tokenizer_config.json").read_text())
    del options["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(options))
    config = configure({"name": str(bare)}, train=make_data(GOOD))
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    assert caught.value.problems[0].where == "model.chat_template"
    assert caught.value.exit_code == 2


def test_no_target_is_refused_with_the_record(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    template = tmp_path / "silent.jinja"
    template.write_text(
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    )
    data = make_data(GOOD)
    error = problem(configure({"chat_template": str(template)}, train=data))
    assert error.where == f"{data}:1"
    assert "no token of the record is a target: 'what is 0?" in error.found


def test_all_targets_are_refused_with_examples(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    template = tmp_path / "all.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    data = make_data(GOOD)
    error = problem(configure({"chat_template": str(template)}, train=data))
    assert "100 %" in error.found
    assert f"{data}:1: " in error.found
    assert "objective=text" in error.hint


def test_an_end_of_turn_that_is_not_learned_is_said(
    configure: Configure,
    make_data: MakeData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    data = make_data(GOOD)
    prepare(configure({"chat_template": str(template)}, train=data))
    assert "the model may not learn to stop" in capsys.readouterr().err
    prepare(configure(train=data))
    assert "warning" not in capsys.readouterr().err


def test_nothing_left_is_refused(configure: Configure, make_data: MakeData) -> None:
    config = configure(train=make_data(GOOD), max_length=4)
    error = problem(config)
    assert error.where == "data.train"
    assert "40 dropped" in error.found
    error = problem(configure(train=make_data([b"[]"] * 3), bad_records="skip", format="chat"))
    assert "3 skipped" in error.found


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_records(configure: Configure, tmp_path: Path, content: str) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text(content)
    (tmp_path / "good.jsonl").write_text(json.dumps(GOOD[0]))
    for value in (str(empty), [str(tmp_path / "good.jsonl"), str(empty)]):
        error = problem(configure(train=value))
        assert str(empty) in error.where


def test_an_unknown_schema_is_refused(configure: Configure, make_data: MakeData) -> None:
    data = make_data([b"", {"question": "a", "answer": "b"}])
    error = problem(configure(train=data))
    assert error.where == f"{data}:2"
    assert "'question', 'answer'" in error.found


# The cache.


def test_a_second_start_does_nothing(configure: Configure, make_data: MakeData) -> None:
    config = configure(train=make_data(GOOD), validation_share=0.3)
    found = prepare(config)
    assert fingerprint.lookup(config) == found
    stamps = {file: file.stat().st_mtime_ns for file in Path(config.data.cache).rglob("*.bin")}
    assert stamps
    assert prepare(config, tokenizer=object()) == found  # it is not even looked at
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "version"])
def test_a_damaged_cache_is_made_again(
    configure: Configure, make_data: MakeData, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    config = configure(train=make_data(GOOD), validation_share=0.3)
    found = prepare(config)
    folder = Path(str(found["validation"]))
    before = TokenCache.open(folder).index
    tokens = folder / "tokens.bin"
    if damage == "truncate":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif damage == "flip":
        tokens.write_bytes(tokens.read_bytes()[:-1] + b"\x7f")
    elif damage == "delete":
        tokens.unlink()
    elif damage == "index":
        (folder / "index.json").write_text("{")
    else:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, "version": 0}))
    assert fingerprint.lookup(config) is None
    assert prepare(config) == found
    why = "has layout 0" if damage == "version" else "is damaged"
    assert f"{folder} {why}" in capsys.readouterr().err
    assert TokenCache.open(folder, verify=True).index == before
    assert fingerprint.lookup(config) == found


def test_leftovers_of_a_killed_process_are_removed(
    configure: Configure, make_data: MakeData
) -> None:
    config = configure(train=make_data(GOOD))
    key = fingerprint.data_keys(config)["train"]
    leftover = Path(config.data.cache) / f".{key}.tmp"
    caches.write(leftover, [([1, 2], [1, 1])])
    assert fingerprint.lookup(config) is None
    assert len(train(config)) == len(GOOD)
    assert not leftover.exists()


def test_builtin_data(configure: Configure) -> None:
    config = configure(
        train="builtin:quickstart-chat", validation="builtin:quickstart-chat", limit=5
    )
    assert fingerprint.lookup(config) is None
    found = prepare(config)
    assert fingerprint.lookup(config) == found
    assert TokenCache.open(str(found["validation"])).where(0) == "builtin:quickstart-chat:1"
