"""Graders in Python: what they see, what they may return, and what is said of those that fail."""

from __future__ import annotations

import math

import pytest

from launcher.config.schema import GradersConfig
from launcher.graders.grader import Setting
from launcher.graders.sample import Sample
from launcher.graders.wire import from_wire

pytestmark = pytest.mark.slow
LIMITS = GradersConfig(timeout_s=5.0, workers=2)


@pytest.fixture(scope="module")
def python():
    made = []

    def make(source: str):
        form = {"type": "python", "name": "g", "source": source}
        made.append(from_wire(form, Setting(limits=LIMITS)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_it_sees(python):
    grader = python(
        "def grade(sample, item):\n"
        "    return item['n'] + len(sample['output_text']) + sample['output_json']['a']"
        " + len(sample['output_tools'])\n"
    )
    assert grader.grade({"n": 1}, Sample('{"a": 3}', ({},))).score == 1 + 8 + 3 + 1
    error = grader.grade({"n": 1}, "no JSON").errors[0]
    assert error.kind == "python_grader_runtime_error"
    assert error.message == "line 2: TypeError: 'NoneType' object is not subscriptable"


@pytest.mark.parametrize(
    ("returned", "score", "found"),
    [
        ("True", 1.0, ""),
        ("-2.5", -2.5, ""),
        ("__import__('decimal').Decimal('0.5')", 0.5, ""),
        ("None", None, "TypeError"),
        ("'0.5'", None, "is no number"),
        ("[1]", None, "TypeError"),
        ("1j", None, "TypeError"),
        ("float('nan')", None, "a score of nan, which is no number"),
        ("float('inf')", None, "a score of inf, which is no number"),
        ("10 ** 400", None, "OverflowError"),
        ("1e6", 1e6, ""),
        ("-1e308", None, "a score of -1e+308, which is not within -1,000,000 to 1,000,000"),
        ("1 / 0", None, "line 2: ZeroDivisionError: division by zero"),
        ("item['x']", None, "line 2: KeyError: x"),
    ],
)
def test_what_it_returns(python, returned, score, found):
    grade = python(f"def grade(sample, item):\n    return {returned}\n").grade({}, "")
    assert grade.score == score
    assert found in "".join(error.message for error in grade.errors)
    assert bool(grade.errors) is (score is None)
    assert math.isfinite(grade.seconds)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def grade(sample, item:\n", "SyntaxError"),
        ("x = 1", "KeyError: grade"),
        ("import no_such_module", "line 1: ModuleNotFoundError"),
        ("grade = 3", ""),
    ],
)
def test_a_source_that_cannot_be_run_is_found_before_the_run(python, source, found):
    problems = list(python(source).check([]))
    assert [problem.where for problem in problems] == ["grader.source"] * bool(found)
    assert found in "".join(problem.found for problem in problems)


def test_a_source_within_a_multi_grader_is_tried_too():
    form = {"type": "python", "name": "g", "source": "def grade(sample, item: pass"}
    both = {"type": "multi", "name": "m", "graders": {"g": form}, "calculate_output": "g"}
    made = from_wire(both)
    assert [problem.where for problem in made.check([])] == ["grader.graders.g.source"]
    made.close()


def test_many_are_graded_side_by_side_and_in_order(python):
    grader = python("def grade(sample, item):\n    return item['n']\n")
    pairs = [({"n": n}, Sample("")) for n in range(50)]
    assert [grade.score for grade in grader.grade_all(pairs)] == list(range(50))


def test_what_is_printed_is_kept(python):
    grade = python("def grade(sample, item):\n    print('here', item)\n    return 1\n").grade(
        {}, ""
    )
    assert (grade.score, grade.metadata["output"]) == (1, "here {}\n")


def test_nothing_of_an_answer_is_left_for_the_next(python):
    grader = python(
        "import os, sys\n"
        "def grade(sample, item):\n"
        "    seen = os.path.exists('left') + hasattr(sys, 'left')\n"
        "    open('left', 'w').close()\n"
        "    sys.left = True\n"
        "    return seen\n"
    )
    assert [grader.grade({}, "").score for _ in range(4)] == [0, 0, 0, 0]


def test_random_numbers_are_the_same_for_each_answer(python):
    grader = python("import random\ndef grade(sample, item):\n    return random.random()\n")
    assert len({grade.score for grade in grader.grade_all([({}, Sample(""))] * 6)}) == 1


@pytest.mark.parametrize("member", ["image_tag", "range"])
def test_members_that_mean_nothing_here_are_refused(member):
    form = {"type": "python", "name": "g", "source": "def grade(s, i): return 1", member: "x"}
    with pytest.raises(Exception, match=member):
        from_wire(form)
