"""The site's settings: every wrong key and value is named at once."""

from __future__ import annotations

import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.serve import site
from launcher.serve.chat.engines import require_vllm


def written(folder: Path, text: str) -> Path:
    path = folder / site.FILE
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert site.read(tmp_path / site.FILE) == site.Site()
    assert site.read(written(tmp_path, "")) == site.Site()


def test_names_and_aliases(tmp_path: Path) -> None:
    text = """
organization: acme
models:
  small: {overrides: [model=tiny]}
  gpt-3.5-turbo: {alias: small}
chat: {idle_s: 5}
"""
    read = site.read(written(tmp_path, text))
    assert (read.organization, read.chat.idle_s) == ("acme", 5.0)
    assert read.models["small"].overrides == ["model=tiny"]
    assert [read.resolve(name) for name in ("small", "gpt-3.5-turbo", "x")] == [
        "small",
        "small",
        None,
    ]


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = """
organisation: acme
limits: {file_bytes: -1, part_bytes: many}
queue: 3
models:
  a/b: {overrides: [model=tiny]}
  one: {alias: two}
  both: {alias: one, overrides: [x=1]}
webhooks: {allow: [https://fine.example, "https://path.example/x", ftp://a.example, fine]}
"""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        site.read(path)
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    assert found == {"organisation", "limits.file_bytes", "limits.part_bytes", "queue"}
    assert "did you mean 'organization'?" in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        site.read(written(tmp_path, text[text.index("models") :]))
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    wrong = {f"webhooks.allow[{i}]" for i in (1, 2, 3)}
    assert found == {"models.a/b", "models.one.alias", "models.both", *wrong}


def numbers(cls: type = site.Site, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Where each number of the file stands -> its type as it is declared."""
    found: dict[tuple[str, ...], Any] = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is dict and is_dataclass(arguments[1]):
            found |= numbers(arguments[1], (*path, name, "x"))
        elif is_dataclass(hint):
            found |= numbers(hint, (*path, name))
        elif {int, float} & {hint, *arguments}:
            found[(*path, name)] = hint
    return found


@pytest.mark.parametrize("path", numbers(), ids=".".join)
def test_numbers_that_nothing_can_be_done_with_are_refused_by_name(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    may_be_zero = path[-1] in ("retries", "max_restarts")
    for value in ("-1", ".inf", ".nan", *([] if may_be_zero else ["0"])):
        text = value
        for name in reversed(path):
            text = f"{{{name}: {text}}}"
        with pytest.raises(ConfigError) as raised:
            site.read(written(tmp_path, text))
        (problem,) = raised.value.problems
        assert problem.where.endswith(f": {'.'.join(path)}")


def test_what_may_be_none_at_all_may_be_zero(tmp_path: Path) -> None:
    text = 'judges: {a: {url: "http://a/v1", retries: 0}}\nchat: {vllm: {max_restarts: 0}}'
    read = site.read(written(tmp_path, text))
    assert (read.judges["a"].retries, read.chat.vllm.max_restarts) == (0, 0)


def test_judges_have_addresses_and_code_a_level(tmp_path: Path) -> None:
    text = """
judges:
  gpt-4o: {url: "http://localhost:8000/v1", model: qwen3-32b, key_variable: JUDGE_KEY}
models: {tiny: {overrides: [model=tiny], reinforcement: [objective.max_new_tokens=64]}}
"""
    read = site.read(written(tmp_path, text))
    assert (read.judges["gpt-4o"].model, read.graders.sandbox) == ("qwen3-32b", "strict")
    assert read.models["tiny"].reinforcement == ["objective.max_new_tokens=64"]
    path = written(tmp_path, "judges: {a: {}, b: {url: ftp://x}}\ngraders: {sandbox: none}")
    with pytest.raises(ConfigError) as raised:
        site.read(path)
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    assert found == {"judges.a.url", "judges.b.url", "graders.sandbox"}


def test_what_draws_tokens_is_known_and_there(tmp_path: Path) -> None:
    text = "chat: {answers: vlm, vllm: {memory: 1.5, lora_rank: 1000}}"
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        site.read(path)
    assert "did you mean 'vllm'?" in str(raised.value)
    path = written(tmp_path, text.replace("vlm,", "vllm,"))
    with pytest.raises(ConfigError) as raised:
        site.read(path)
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    assert found == {"chat.vllm.memory", "chat.vllm.lora_rank"}
    wanted = "chat: {answers: vllm, vllm: {python: no/such/python}}"
    read = site.read(written(tmp_path, wanted))
    with pytest.raises(ConfigError, match="no command 'no/such/python'"):
        require_vllm(read, "serve.yaml")
    require_vllm(site.read(written(tmp_path, wanted.replace("answers: vllm", "models: 1"))), "")
