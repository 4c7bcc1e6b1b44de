"""What is said of a wrong command line, and what its hint says to type, read as a user reads it."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.check import checks
from launcher.config.compose import compose, groups
from launcher.config.schema import Config, conversion
from launcher.core.errors import ConfigError, ExitCode, Problem

_WORD = re.compile(
    r"'[a-z_]+(?:\.\w+)*=[^']*'|\b[a-z_]+(?:\.\w+)*=(?:'[^']*'|\[[^\]]*\]|[^\s;,)']*)"
)
#: What stands for a value of the user's own.
_PLACEHOLDER = re.compile(r"[A-Z]+|<.*|\.\.\.|")


def commands(text: str) -> list[list[str]]:
    """The words of each `launcher` command in a text, without `launcher`, as a shell reads them."""
    return [shlex.split(typed)[1:] for typed in re.findall(r"`(launcher [^`]+)`", text)]


def overrides(text: str) -> list[str]:
    """Overrides that a text writes out, each with its value, as a shell hands them over."""
    found = [shlex.split(word)[0].rstrip(":") for word in _WORD.findall(text)]
    keys = conversion.leaves().keys() | groups.list_groups().keys()
    return [
        word
        for word in found
        if {word.partition("=")[0], word.partition("=")[0].rpartition(".")[0]} & keys
        and not _PLACEHOLDER.fullmatch(word.partition("=")[2])
    ]


def ways(hint: str) -> list[list[str]]:
    """The ways out that a hint offers, each as the overrides to be typed together."""
    parts = re.split(r";|,? or (?=[a-z_.]+=)|,? or (?=')", hint)
    return [words for part in parts if (words := overrides(part))]


def mended(problem: Problem, data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The ways out that a hint offers to one with `data` in a file of his own: that file as he
    leaves it, and the overrides that he types with it."""
    for words in ways(problem.hint):
        yield data, words
    *parents, last = problem.where.split(".")
    changed = copy.deepcopy(data)
    section = changed
    for parent in parents:
        section = section[parent]
    if near := re.search(r"did you mean (.*)\?", problem.hint):
        (wrong,) = re.findall("'(.*?)'", problem.found)
        old = section[last]
        for right in re.findall("'(.*?)'", near[1]):
            many = isinstance(old, list)
            section[last] = [right if one == wrong else one for one in old] if many else right
            yield copy.deepcopy(changed), []
    elif bound := re.search(r"at least (\S+)", problem.hint):
        yield data, [f"{problem.where}={bound[1]}"]
    elif left := re.search(r"\bleave (.*?) out\b", problem.hint):
        said = left[1].split(" and ")
        if said[0] in ("it", problem.where):
            del section[last]
        else:  # of the entries of a list
            section[last] = [
                {key: value for key, value in entry.items() if key not in said}
                if isinstance(entry, dict)
                else entry
                for entry in section[last]
                if entry not in said
            ]
        yield changed, []
    elif other := re.search(r"call it '(.*?)'", problem.hint):
        (wrong,) = re.findall("'(.*?)'", problem.found)
        section[last][other[1]] = section[last].pop(wrong)
        yield changed, []


def require_mended(config: Config, file: Path, **machine: Any) -> None:
    """Fail unless each problem of `config` has a hint, and each way out that it offers mends it;
    `machine` is what `checks.check` takes."""
    own = conversion.to_dict(config)
    for problem in checks.check(config, **machine):
        offered = list(mended(problem, own))
        assert offered, f"{problem.hint}: what is to be typed?"
        for said, words in offered:
            file.write_text(compose.dump_plain(said), encoding="utf-8")
            new, wrong = compose.try_compose([str(file), *words])
            left = [*wrong, *checks.check(new, **machine)]
            same = [p for p in left if (p.where, p.found) == (problem.where, problem.found)]
            assert not same, f"{problem.hint}: {words} leaves it"
            assert not wrong


def refused(*words: str) -> list[Problem]:
    """What is wrong with a command line that cannot be composed."""
    with pytest.raises(ConfigError) as caught:
        compose.compose(words)
    assert caught.value.exit_code == ExitCode.usage
    return list(caught.value.problems)
