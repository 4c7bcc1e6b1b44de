"""What is said of a wrong command line, and what its hint says to type, read as a user reads it."""

from __future__ import annotations

import re
import shlex

import pytest

from launcher.config.compose import compose, groups
from launcher.config.schema import typed
from launcher.core.errors import ConfigError, ExitCode, Problem

_WORD = re.compile(
    r"'[a-z_]+(?:\.\w+)*=[^']*'|\b[a-z_]+(?:\.\w+)*=(?:'[^']*'|\[[^\]]*\]|[^\s;,)']*)"
)
#: What stands for a value of the user's own.
_PLACEHOLDER = re.compile(r"[A-Z]+|<.*|\.\.\.|")


def overrides(text: str) -> list[str]:
    """Overrides that a text writes out, each with its value, as a shell hands them over."""
    found = [shlex.split(word)[0] for word in _WORD.findall(text)]
    keys = typed.leaves().keys() | groups.list_groups().keys()
    return [
        word
        for word in found
        if word.partition("=")[0] in keys and not _PLACEHOLDER.fullmatch(word.partition("=")[2])
    ]


def ways(hint: str) -> list[list[str]]:
    """The ways out that a hint offers, each as the overrides to be typed together."""
    parts = re.split(r";|,? or (?=[a-z_.]+=)|,? or (?=')", hint)
    return [words for part in parts if (words := overrides(part))]


def refused(*words: str) -> list[Problem]:
    """What is wrong with a command line that cannot be composed."""
    with pytest.raises(ConfigError) as caught:
        compose.compose(words)
    assert caught.value.exit_code == ExitCode.usage
    return list(caught.value.problems)
