"""A study, and the command line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.ab.study import Study
from support.project import LAUNCHER
from support.ranks import environment
from support.studies import make_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of twelve prompts without judges."""
    return make_study(tmp_path / "study")


@pytest.fixture
def run_ab(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`launcher ab ...` in a folder of its own, to its end."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LAUNCHER, "ab", *map(str, words)],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=170,
        )

    return run
