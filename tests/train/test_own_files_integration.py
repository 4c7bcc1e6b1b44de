"""A run goes on with the files of the user's own that it began with, whatever becomes of them."""

from __future__ import annotations

import shutil

import pytest

from launcher.core.errors import ExitCode
from support import project
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

OWN = """
from launcher.data.formats import Pair

from .helper import answer


class Format:
    def read(self, record):
        return Pair(record["q"], answer(record["n"]))
"""
HELPER = """
def answer(number):
    from .numbers import WORDS

    return f"It is {WORDS[number % 3]} {number}."
"""
NUMBERS = "WORDS = ['even', 'odd', 'prime']\n"
WORDS = (
    "data.train=[{path: data.jsonl, format: own/mine.py}]",
    *("batch.sequences=4", "schedule=constant", "optim.lr=1e-3", "train.epochs=null"),
    *("checkpoint.every_steps=1", "data.packing=false"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("own"))
    made.write_data({"q": f"What is {n}?", "n": n} for n in range(24))
    return made


def resume(here: Project, name: str, step: int) -> dict:
    shutil.rmtree(here.folder / "cache")  # so that the data is read again
    done = here.run((*LAUNCHER, "resume"), name, f"train.steps={step}")
    assert done.code == ExitCode.ok, done.output
    return project.losses(here.folder_of(name))


def train(here: Project, name: str, *words: str) -> dict:
    done = here.run((*LAUNCHER, "train"), *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return project.losses(here.folder_of(name))


def test_a_resume_reads_by_the_copies_of_a_format_and_of_its_modules(here):
    own = here.folder / "own"
    own.mkdir()
    for name, text in (("mine.py", OWN), ("helper.py", HELPER), ("numbers.py", NUMBERS)):
        (own / name).write_text(text)
    known = train(here, "whole", "train.steps=4")
    assert train(here, "parts", "train.steps=2") == {step: known[step] for step in (1, 2)}
    (own / "numbers.py").write_text("raise SystemExit('another file')\n")
    assert resume(here, "parts", 3) == {step: known[step] for step in (1, 2, 3)}
    shutil.rmtree(own)
    assert resume(here, "parts", 4) == known
