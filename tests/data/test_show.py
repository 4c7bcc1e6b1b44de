"""The sample of what is trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.files import write_json
from launcher.data import show
from launcher.data.prepare.preparation import prepare
from support.chats import chat


@pytest.fixture
def prepared(configure: Callable[..., Config], make_data: Callable[..., Path]) -> Config:
    records = [chat("a \x1b[31mred", f"  it is\n{i} 🙂") for i in range(5)]
    return configure(train=make_data(records))


def test_show_marks_targets(prepared: Config, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(prepared)["train"]
    assert show.main([str(folder), "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert "assistant\n[[  it is\n0 🙂<|im_end|>]]\n" in out
    assert f"{prepared.data.train}:1  record 0, " in out
    assert f"{prepared.data.train}:3  record 2, " in out
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out
    assert "% targets" in out


def test_colours_do_not_run_over_line_ends(prepared: Config) -> None:
    from launcher.data.cache import TokenCache
    from launcher.data.tokenizer import load_tokenizer

    cache = TokenCache.open(str(prepare(prepared)["train"]))
    text = show.render(cache, 0, load_tokenizer(prepared.model), ("<", ">"))
    assert "<  it is>\n<0 🙂<|im_end|>>" in text


def test_show_of_a_run_folder(
    prepared: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    compose.save(prepared, run / "config.yaml")
    assert show.main([str(run)]) == 3
    assert f"`launcher data show {run}/config.yaml` prepares it" in capsys.readouterr().err
    write_json(run / "data.json", prepare(prepared))
    assert show.main([str(run)]) == 0
    assert "[[  it is" in capsys.readouterr().out
    assert show.main([str(run), "--split", "validation"]) == 3
    assert "no record is held out" in capsys.readouterr().err
    assert show.main([str(tmp_path)]) == 2


def test_what_the_template_leaves_out_is_shown(
    configure: Callable[..., Config],
    make_data: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    thoughtful = chat("how many?", "five")
    thoughtful["messages"][1]["reasoning_content"] = "seven less two"
    data = make_data([chat("a", "b"), *[thoughtful] * 6])
    folder = prepare(configure(train=data))["train"]
    said = capsys.readouterr().err
    assert f"{data}:2: the chat template leaves out the thoughts of message 2" in said
    assert "train.jsonl:7" not in said  # five are named, the others counted
    assert "leaves something out of 6 of 7 records" in said
    assert "6 with something left out" in said
    assert show.main([str(folder), "--count", "7"]) == 0
    first, second, *_ = capsys.readouterr().out.split("\n\n")
    assert "leaves out" not in first
    assert "\nthe chat template leaves out of it: thoughts\n" in second
