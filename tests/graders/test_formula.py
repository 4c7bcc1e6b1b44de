"""Formulas of multi graders: read as they are written, and never run as code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.graders.formula import FUNCTIONS, MAX_DEPTH, Formula

NUMBERS = {"a": 2.0, "b": 0.5, "score_1": -3.0}


def value(text: str) -> float:
    return Formula(text, NUMBERS, "grader").value(NUMBERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        (" .5 + 1.e1", 10.5),
        ("a", 2),
        ("2 - 3 - 4", -5),
        ("2 / 4 / 2", 0.25),
        ("2 + 3 * 4", 14),
        ("-2 ^ 2", -4),
        ("2 ^ 3 ^ 2", 512),
        ("2 ^ -1", 0.5),
        ("--2", 2),
        ("2 * -b", -1),
        ("(2 + 3) * 4", 20),
        ("min(a, b, 1)", 0.5),
        ("max(a)", 2),
        ("abs(score_1) + floor(2.7) + ceil(b)", 6),
        ("sqrt(4) + exp(0) + log(1)", 3),
        ("0.7 * a + 0.3 * min(b, 0.25)", 1.475),
    ],
)
def test_values(text, expected):
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+".join(["a"] * 990), 1980),
        ("1" + "-a" * 990, -1979),
        ("*".join(["(-1)"] * 399), -1),
        ("max(1, -" * (MAX_DEPTH - 1) + "a" + "*1+0)" * (MAX_DEPTH - 1), 1),
    ],
)
def test_long_and_deep_formulas_have_values(text, expected):
    assert value(text) == expected


def _expressions() -> st.SearchStrategy[str]:
    """Formulas that Python reads alike once ^ is **."""
    atoms = st.sampled_from(["a", "b", "score_1", "1", "2.5", "3"])

    def grow(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pairs = st.tuples(part, st.sampled_from("+-*/^"), part).map(
            lambda p: f"{p[0]} {p[1]} {p[2]}"
        )
        calls = st.tuples(st.sampled_from(sorted(FUNCTIONS)), part).map(lambda p: f"{p[0]}({p[1]})")
        return pairs | calls | part.map("({})".format) | part.map("-{}".format)

    return st.recursive(atoms, grow, max_leaves=8)


@given(_expressions())
def test_a_formula_has_the_value_that_python_gives_it(text):
    known = {name: row[2] for name, row in FUNCTIONS.items()} | NUMBERS
    code = compile(text.replace("^", "**"), "formula", "eval")
    try:
        expected = eval(code, {"__builtins__": {}}, known)  # noqa: S307 - our own text
        if isinstance(expected, complex):
            return  # a root of a negative number, which `test_no_value` has
        expected = float(expected)
    except (ArithmeticError, ValueError):
        with pytest.raises((ArithmeticError, ValueError)):
            value(text)
        return
    assert value(text) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@given(st.text(alphabet="ab12.+-*/^(), minlog_'[]", max_size=40))
def test_any_text_is_a_formula_or_an_error_with_a_hint(text):
    try:
        formula = Formula(text, NUMBERS, "grader")
    except ConfigError as error:
        hint = error.problems[0].hint
    else:
        hint = "none needed" if formula.names <= NUMBERS.keys() else ""
    assert hint


@pytest.mark.parametrize("text", ["1 / (a - 2)", "log(0)", "sqrt(score_1)", "exp(1000)", "9^9^9"])
def test_no_value(text):
    with pytest.raises((ArithmeticError, ValueError)):
        value(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "too early"),
        ("1 +", "too early"),
        ("* 2", "missing before '*'"),
        ("(1", "')' is missing"),
        ("1 2", "left over"),
        ("c + 1", "unknown name 'c'"),
        ("__import__(1)", "unknown name"),
        ("a.real", "'.real'"),
        ("a ** 2", "missing before '*'"),
        ("min()", "missing before ')'"),
        ("sqrt(1, 2)", "of 2 values"),
        ("(" * 60 + "1" + ")" * 60, f"deeper than {MAX_DEPTH}"),
        ("^".join(["2"] * 60), f"deeper than {MAX_DEPTH}"),
        ("1 + " * 1000, "4,000 characters"),
    ],
)
def test_what_is_no_formula_is_refused(text, found):
    with pytest.raises(ConfigError) as raised:
        Formula(text, NUMBERS, "grader.calculate_output")
    assert found in raised.value.problems[0].found
    assert raised.value.problems[0].where == "grader.calculate_output"


def test_names_that_a_formula_needs():
    assert Formula("min(a, 1) * 2", NUMBERS, "").names == {"a"}
    assert math.isnan(Formula("a", NUMBERS, "").value({"a": math.nan}))
