"""Answers that were drawn: one with what a test says of it, and rollouts as a run leaves them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from launcher.core.rundir import RunDir
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal

#: what a run logs of its rollouts.
NUMBERS = {
    **{"score": 0.5, "score/form": 1.0, "score/sum": 0.25, "flat_groups": 0.25, "left_out": 0.1},
    **{"clip_share": 0.01, "redrawn_groups": 0.3, "entropy": 2.0, "kl": 0.02, "cut_share": 0.5},
    **{"answer_tokens": 12.0, "sampler_gap": 1e-6, "grader_errors": 0.1},
    **{"rollout_s": 3.0, "grading_s": 1.0, "behind": 1.0},
    **{
        "teacher_kl": 0.3,
        "teacher_divergence": 0.2,
        "turns": 2.0,
        "environment_errors": 0.1,
        "environment_s": 0.5,
    },
}


def kept(run: RunDir, answers: int) -> dict[int, list[ScoredAnswer]]:
    """Step -> the rollout that a run has kept, of so many answers."""
    journal = RolloutJournal(run, answers)
    return {step: journal.read(step) or [] for step in journal.steps()}


def answered(**values: Any) -> ScoredAnswer:
    """An answer of which a test says only what it is about."""
    usual: dict[str, Any] = {
        **{"place": 0, "number": 0, "draw": 0, "record": 0, "where": "", "prompt": "", "text": ""},
        **{"cut": False, "score": 1.0, "reward": 1.0, "advantage": 0.0, "is_learned": True},
        **{"sub_scores": {}, "errors": [], "prompt_tokens": [1], "tokens": [2, 3]},
        "sampler_log_probs": [-1.0, -1.0],
    }
    return ScoredAnswer(**{**usual, **values})


def answer_lines(step: int, *, prompts: int = 5, group: int = 10, **values: Any) -> list[dict]:
    """The lines of a rollout's file, each other answer one that is cut and went wrong."""
    lines = []
    for place in range(prompts):
        for number in range(group):
            odd: dict[str, Any] = {}
            if number % 2:
                odd = {"cut": True, "is_learned": False, "reward": 0.25, "advantage": 0.75}
                odd |= {"score": 0.5, "errors": ["sample_parse_error: no JSON"]}
                odd |= {"sub_scores": {"form": 1.0, "sum": None}, "tokens": [4, 5, 6]}
            own = {"prompt": f"How many are {place}?", "text": f"{number} of step {step}", **odd}
            own |= {"place": place, "number": number, "where": f"sums.jsonl:{place + 1}", **values}
            lines.append({"step": step, **asdict(answered(**own))})
    return lines


def reinforce(run: RunDir, rollouts: int = 40) -> None:
    """Let a run that was written by hand have drawn answers."""
    run.rollouts.mkdir()
    for step in range(rollouts):
        lines = answer_lines(step)
        path = run.rollouts / f"step-{step:08d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in logged:
        if line["kind"] == "train":
            line |= NUMBERS
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in logged))
