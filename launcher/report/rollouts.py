"""What a page shows of a run whose model answers: numbers of the rollouts, answers as they were
drawn, and measures that fell while the reward rose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.report import charts, compared, summary
from launcher.report.charts import Chart, Curve
from launcher.report.collect import PROMPTS, RunFacts, as_number, series
from launcher.report.renderer import visible

#: answers to a prompt.
ANSWERS = 8
#: characters of a prompt or an answer.
LONGEST = 1200
#: curves of a chart that can be told apart.
_COLOURS = ("a", "b", "good", "neutral")


class Drawing(NamedTuple):
    """A chart, or none where there is nothing to draw, and what its numbers are."""

    chart: Chart | None
    note: str


def view(facts: RunFacts) -> dict[str, Any] | None:
    """All that the template shows; None for a run whose model answers nothing."""
    groups = [
        (title, [drawing for drawing in drawings if drawing.chart])
        for title, drawings in _drawings(facts.train)
    ]
    groups = [(title, drawings) for title, drawings in groups if drawings]
    answers = [
        {"step": step + 1, "groups": [*map(_group, prompts)]}
        for step, prompts in facts.rollouts.items()
    ]
    if not (groups or answers):
        return None
    watched = _mapping(facts.comparison.get("watch"))
    return {
        "groups": groups,
        "rollouts": answers,
        "prompts": PROMPTS,
        "told": _told(facts, watched),
        "hacking": _hacking(facts.comparison, watched),
    }


# ---- numbers


def _drawings(train: list[dict[str, Any]]) -> Iterator[tuple[str, list[Drawing]]]:
    """Charts by what they tell."""

    def lines(**names: str) -> list[Curve]:
        return [
            Curve(label.replace("_", " "), "line", colour, series(train, key))
            for (label, key), colour in zip(names.items(), _COLOURS, strict=False)
        ]

    def plain(name: str, title: str, curves: Sequence[Curve], *, zero: bool = True) -> Chart | None:
        return charts.chart(name, title, curves, charts.plain, from_zero=zero)

    def shares(name: str, title: str, curves: Sequence[Curve]) -> Chart | None:
        return charts.chart(name, title, curves, lambda v: f"{100 * v:.3g} %", from_zero=True)

    score = charts.with_average("", "a", series(train, "score"))
    yield (
        "What is rewarded and learned from",
        [
            Drawing(
                plain("score", "Score of drawn answers", score, zero=False),
                "Mean of the grader's scores over the answers that have one.",
            ),
            *_parts(train),
            Drawing(
                shares(
                    "shares",
                    "Groups and answers that teach nothing",
                    lines(groups_without_spread="flat_groups", answers_left_out="left_out"),
                ),
                "Groups whose answers all have the same reward; answers that are cut and filtered,"
                " or have no score.",
            ),
            Drawing(
                shares("clip-share", "Tokens that are clipped", lines(clipped="clip_share")),
                "Tokens whose ratio of probabilities is clipped, so that they push no more.",
            ),
            Drawing(
                plain("redrawn", "Groups drawn again", lines(groups="redrawn_groups")),
                "Groups that were replaced by those of other prompts, for each prompt.",
            ),
        ],
    )
    yield "What the model does", [*_of_model(plain, shares, lines)]
    yield (
        "Grading and time",
        [
            Drawing(
                shares("grader-errors", "Answers with an error", lines(errors="grader_errors")),
                "Answers of which the grader says that something went wrong.",
            ),
            Drawing(
                plain(
                    "rollout-time",
                    "Seconds of a rollout",
                    lines(all_of_it="rollout_s", grading="grading_s"),
                ),
                "On the slowest rank.",
            ),
            Drawing(
                shares(
                    "environment-errors",
                    "Answers that an environment ended",
                    lines(errors="environment_errors"),
                ),
                "Answers that an error of the environment has ended.",
            ),
            Drawing(
                plain(
                    "environment-time",
                    "Seconds of environments",
                    lines(waited="environment_s"),
                ),
                "What a rollout has waited for them, on the slowest rank.",
            ),
            Drawing(
                plain("behind", "Steps behind", lines(steps="behind")),
                "Optimizer steps between the weights that drew an answer and those that learn from"
                " it.",
            ),
        ],
    )


def _of_model(plain: Any, shares: Any, lines: Any) -> Iterator[Drawing]:
    yield Drawing(
        plain(
            *("teacher-kl", "From the teacher, nats a token"),
            [*lines(KL="teacher_kl"), *lines(divergence="teacher_divergence")],
            zero=False,
        ),
        "KL: mean of the model's log-probability of what was drawn less the teacher's; divergence:"
        " that of both distributions.",
    )
    yield Drawing(
        plain("turns", "Turns of an answer", lines(turns="turns")),
        "How often the model spoke, in the mean.",
    )
    yield Drawing(
        plain(
            *("entropy", "Of drawn tokens, nats"),
            lines(entropy="entropy", KL_to_the_reference="kl"),
        ),
        "Entropy: how undecided the model is at each token. KL: how far it is from the reference.",
    )
    yield Drawing(
        plain("answer-tokens", "Tokens per answer", lines(tokens="answer_tokens")),
        "Mean over all drawn answers.",
    )
    yield Drawing(
        shares("cut-share", "Answers that are cut", lines(cut="cut_share")),
        "Answers that have not ended at objective.max_new_tokens.",
    )
    yield Drawing(
        plain("sampler-gap", "Sampler against trainer, nats", lines(gap="sampler_gap")),
        "Mean distance of the log-probabilities that tokens were drawn by from the trainer's.",
    )


def _parts(train: list[dict[str, Any]]) -> Iterator[Drawing]:
    """The parts of the score, as many of a chart as can be told apart."""
    names = sorted({key for line in train for key in line if key.startswith("score/")})
    for start in range(0, len(names), len(_COLOURS)):
        curves = [
            Curve(name.removeprefix("score/"), "line", colour, series(train, name))
            for name, colour in zip(names[start:], _COLOURS, strict=False)
        ]
        number = "" if not start else f"-{start // len(_COLOURS) + 1}"
        drawn = charts.chart(f"parts{number}", "Parts of the score", curves, charts.plain)
        yield Drawing(drawn, "Means of the graders that the score is made of, by their names.")


# ---- answers


def _group(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = lines[0]
    return {
        "where": visible(str(first.get("where") or f"record {first.get('record', '')}")),
        "prompt": _shortened(first.get("prompt")),
        "answers": [_answer(line) for line in lines[:ANSWERS]],
        "more": max(0, len(lines) - ANSWERS),
    }


def _answer(line: Mapping[str, Any]) -> dict[str, Any]:
    score, reward = as_number(line.get("score")), as_number(line.get("reward"))
    parts = _mapping(line.get("sub_scores"))
    errors = line.get("errors")
    numbers = [("score", _number(score))]
    numbers += [(visible(str(name)), _number(as_number(own))) for name, own in parts.items()]
    if reward is not None and reward != score:
        numbers.append(("reward", _number(reward)))
    numbers.append(("advantage", _number(as_number(line.get("advantage")), signed=True)))
    tokens = line.get("tokens")
    if isinstance(tokens, list):
        numbers.append(("tokens", f"{len(tokens):,}"))
    chips = ["cut"] if line.get("cut") else []
    chips += ["not learned"] if line.get("is_learned") is False else []
    return {
        "text": _shortened(line.get("text")),
        "numbers": numbers,
        "chips": chips,
        "errors": [
            visible(str(one))[:LONGEST] for one in (errors if isinstance(errors, list) else ())
        ],
    }


def _shortened(text: object) -> tuple[str, int]:
    """A text as it can be shown, and how many characters are left out."""
    whole = text if isinstance(text, str) else ""
    return visible(whole[:LONGEST]), max(0, len(whole) - LONGEST)


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "none"
    return f"{'+' if signed and value > 0 else ''}{charts.plain(value)}"


# ---- the reward against other measures


def _hacking(comparison: Mapping[str, Any], watched: Mapping[str, Any]) -> dict[str, Any] | None:
    """The measures that fell while the reward rose, with examples; None where none did."""
    reward, rows = _mapping(watched.get("reward")), _mapping(comparison.get("metrics"))
    falls = [name for name in watched.get("falls") or () if name in rows]
    if not (reward and falls):
        return None
    name = f"{reward['name']}, the reward, of {reward['on']}"
    how = ""
    if reward["name"] == "score":
        how = " That of the reward is from the first third of the rollouts to the last; its records"
        how += " are groups of answers."
    return {
        "how": how,
        "rows": [compared.row(name, reward), *(compared.row(one, rows[one]) for one in falls)],
        "examples": [
            _example(one, reward, rows[one["metric"]])
            for one in watched.get("examples") or ()
            if one.get("metric") in rows
        ],
    }


def _example(
    one: Mapping[str, Any], reward: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    before, after = (
        f"{summary.number(reward_of, reward.get('unit', ''))} by the reward,"
        f" {summary.number(value, row.get('unit', ''))} by {one['metric']}"
        for reward_of, value in zip(one["reward"], one["values"], strict=True)
    )
    return {
        "where": visible(one["where"]),
        "prompt": _shortened(one["prompt"]),
        "reference": _shortened(one["reference"]),
        "sides": [("Base", before, _shortened(one["base"]))]
        + [("Tuned", after, _shortened(one["tuned"]))],
    }


def _told(facts: RunFacts, watched: Mapping[str, Any]) -> str:
    """In a sentence or two, whether the reward is held against anything."""
    reward = _mapping(watched.get("reward"))
    if not reward and facts.status.state.is_final:
        return (
            "Nothing says whether the reward rose at the cost of other measures: held-out answers"
            " of base and tuned model would."
        )
    if not reward:
        return ""
    unit = reward.get("unit", "")
    verb = {"better": "rose", "worse": "fell"}.get(reward["verdict"], "did not change for sure")
    text = (
        f"The reward, {reward['name']} of {reward['on']}, {verb}:"
        f" {summary.number(reward['base'], unit)} to {summary.number(reward['tuned'], unit)}"
        f" (95 % interval of the change {summary.interval(reward)})."
    )
    others, falls = watched.get("others") or (), watched.get("falls") or ()
    if not others:
        return (
            f"{text} No other measure of held-out answers is beside it: name some in eval.metrics."
        )
    if falls:
        return f"{text} Meanwhile {', '.join(falls)} got worse."
    return f"{text} Of what stands beside it ({', '.join(others)}) nothing got worse with it."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
