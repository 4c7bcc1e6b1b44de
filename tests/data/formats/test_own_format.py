"""A format in a user's own file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import fingerprint
from launcher.config.check import checks
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, LauncherError
from launcher.data.cache import TokenCache
from launcher.data.formats import Reader
from launcher.data.prepare.preparation import prepare

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


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
