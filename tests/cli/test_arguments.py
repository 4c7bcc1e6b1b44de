"""Options that a verb hands on to the process that does the work."""

from __future__ import annotations

from argparse import Namespace

from launcher.cli import arguments


def test_a_zero_is_handed_on() -> None:
    given = Namespace(top_k=0, temperature=0.0, seed=None, base=False, raw=True, prompt=["-a", ""])
    said = arguments.words(given, *vars(given))
    assert said == ["--top-k=0", "--temperature=0.0", "--raw", "--prompt=-a", "--prompt="]
