"""Tests that are run on the code of an answer."""

from __future__ import annotations

import pytest

from launcher.config.schema import GradersConfig
from launcher.core.errors import ConfigError
from launcher.graders.grader import Setting
from launcher.graders.tests import code_of
from launcher.graders.wire import from_wire

FORM = {
    "type": "tests",
    "name": "g",
    "command": ["python", "check.py"],
    "files": {"check.py": "from answer import f\n{{ item.tests }}\n"},
}
ITEM = {"tests": "print('checked')\nassert f(2) == 4"}


@pytest.fixture(scope="module")
def grader():
    made = from_wire(FORM, Setting(limits=GradersConfig(timeout_s=3.0, workers=1)))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nor\n```\ny = 2\n```\nend", "y = 2\n"),
        ("  ```py\n  x\n  ```", "  x\n"),
        ("x = 1", "x = 1"),
        ("```\nnever closed", "```\nnever closed"),
    ],
)
def test_the_code_of_an_answer(text, code):
    assert code_of(text) == code


@pytest.mark.slow
def test_right_and_wrong_code(grader):
    right = grader.grade(ITEM, "So:\n```python\ndef f(x):\n    return x * x\n```\n")
    assert (right.score, right.metadata) == (1, {"exit_code": 0, "output": "checked\n"})
    wrong = grader.grade(ITEM, "```python\ndef f(x):\n    return 2 * x + 1\n```")
    assert (wrong.score, wrong.metadata["exit_code"]) == (0, 1)
    assert "AssertionError" in wrong.metadata["output"]
    assert grader.grade(ITEM, "I cannot.").score == 0


@pytest.mark.slow
def test_code_that_never_ends_is_wrong(grader):
    grade = grader.grade(ITEM, "while True: pass")
    assert (grade.score, grade.errors[0].message) == (0, "it took longer than 3 s")


@pytest.mark.slow
def test_a_command_that_is_not_there_gives_no_score():
    made = from_wire(FORM | {"command": ["no-such-command"]})
    try:
        grade = made.grade(ITEM, "x")
    finally:
        made.close()
    assert grade.score is None
    assert grade.errors[0].message == "no-such-command: No such file or directory"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_files_stay_in_their_folder(name):
    with pytest.raises(ConfigError, match="no name of a file"):
        from_wire(FORM | {"files": {name: ""}})
