"""`python -m launcher.scoring.verify ANSWERS MODEL...`: models against answers that another gave.

The answers are of a model that cannot be asked here, or any more; the models are asked the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import report
from launcher.config.check import eval_checks
from launcher.config.compose import compose
from launcher.config.derive import adapter
from launcher.config.schema import EvalConfig
from launcher.config.schema.eval import MetricRow
from launcher.config.schema.variants import GRADER, METRICS
from launcher.core import jsontext
from launcher.core.errors import ConfigError, DataError, ExitCode, did_you_mean
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, find_run
from launcher.data.formats.base import BadRecord
from launcher.data.formats.messages import Message, read_turns, tools_of
from launcher.evals import judge, store
from launcher.evals.comparison import significance
from launcher.evals.comparison.paired import Resampling
from launcher.evals.comparison.record_sets import compare_all
from launcher.evals.decoding import Decoding
from launcher.evals.metric import Metric, make_metrics
from launcher.evals.records import Generation, Results, TokenizedPrompt
from launcher.inference.command import exit_code_of, note
from launcher.report import summary
from launcher.scoring.compare import REQUIRED, told

_HINT = (
    'a line has a prompt, or messages, and the answer: {"messages": [...], "answer": "...",'
    ' "reference": "..."}'
)
#: What is measured where there are references and nobody says otherwise.
_USUAL = ("exact_match", "chrf")


@dataclass(frozen=True, slots=True)
class OldAnswer:
    """A line of the file: what was asked, what the old model answered, and what is right."""

    where: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    answer: str
    reference: str
    model: str
    """Who answered, if the line says so."""


def read(path: Path) -> list[OldAnswer]:
    """The answers of a file; `DataError` for a line that is none."""
    found = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_answer(line, f"{path}:{number}"))
    except (OSError, UnicodeError) as error:
        hint = "give a JSON Lines file in UTF-8"
        raise DataError(f"cannot be read: {error}", where=str(path), hint=hint) from error
    if not found:
        raise DataError("there is no answer in it", where=str(path), hint=_HINT)
    return found


def _answer(line: str, where: str) -> OldAnswer:
    try:
        record = jsontext.DECODER.decode(line.strip())
    except (ValueError, RecursionError) as error:
        found, hint = jsontext.why_not(error)
        raise DataError(found, where=where, hint=hint) from error
    if not isinstance(record, dict) or not isinstance(record.get("answer"), str):
        raise DataError("there is no text in `answer`", where=where, hint=_HINT)
    asked = record.get("messages")
    if asked is None and isinstance(record.get("prompt"), str):
        asked = [{"role": "user", "content": record["prompt"]}]
    try:
        messages, tools = read_turns(asked, "messages").messages, tools_of(record)
    except BadRecord as error:
        raise DataError(error.found, where=where, hint=error.hint or _HINT) from error
    reference = record.get("reference", "")
    if messages and messages[-1]["role"] == "assistant":  # as in a training file
        last = messages.pop().get("content")
        reference = reference or (last if isinstance(last, str) else "")
    if not messages:
        raise DataError("nothing is asked in it", where=where, hint=_HINT)
    if not isinstance(reference, str):
        raise DataError("`reference` is no text", where=where, hint=_HINT)
    model = record.get("model")
    name = model if isinstance(model, str) else ""
    return OldAnswer(where, messages, tools, record["answer"], reference, name)


def metrics_of(options: EvalConfig, old: Sequence[OldAnswer]) -> list[Metric[Any]]:
    """What to measure; `ConfigError` for what there is not, or needs what is not there."""
    known = [name for name, row in METRICS.items() if name == "judge" or _is_of_answers(row)]
    for name in options.metrics or ():
        if not name.startswith(GRADER) and name not in known:
            found = f"no metric of answers alone is called {name!r}"
            raise ConfigError(found, where="--metric", hint=did_you_mean(name, known))
    has_references = all(one.reference for one in old)
    if not options.metrics and not has_references:
        raise ConfigError(
            "there is no reference in every line, and nothing else to judge answers by",
            where="launcher openai verify",
            hint="give --grader YAML, or --judge-url and --judge-model, or write `reference`",
        )
    options.metrics = list(options.metrics or _USUAL)
    needy = [
        name
        for name in options.metrics
        if name in METRICS and name != "judge" and METRICS[name].needs_reference
    ]
    if needy and not has_references:
        lines = sum(not one.reference for one in old)
        found = f"{needy[0]} needs a reference, and {lines:,} lines have none"
        raise ConfigError(found, where="--metric", hint=_HINT)
    if "judge" in options.metrics and (problems := list(eval_checks.of_judge(options))):
        raise ConfigError(problems)
    return make_metrics(options)


def _is_of_answers(row: MetricRow) -> bool:
    return row.records == "generation" and not (row.wants or row.needs_base)


def asked(name: str, old: Sequence[OldAnswer], decoding: Decoding) -> list[Generation]:
    """What the model of this name answers: RUN, RUN:STEP, a run's export or a Hugging Face folder.

    Raises `ConfigError` for none of these, `DataError` for messages that its template refuses.
    """
    from launcher.evals.generation import generate_records

    speaker = _speaker(name)
    prompts = []
    for number, one in enumerate(old):
        try:
            tokens = speaker.tokens(one.messages, tools=one.tools)
        except BadRecord as error:
            raise DataError(error.found, where=one.where, hint=error.hint) from error
        prompts.append(TokenizedPrompt(number, tokens, one.reference, one.where))
    done = 0

    def tell(new: list[Generation]) -> None:
        nonlocal done
        done += len(new)
        note(f"{name}: {done:,} of {len(prompts):,} answered")

    answers = generate_records(
        *(prompts, speaker.model, speaker.tokenizer, decoding),
        stop_tokens=speaker.stop_tokens,
        done=tell,
    )
    return sorted(answers, key=lambda answer: answer.id)


def _speaker(name: str) -> Any:
    from launcher.inference.loading import open_base, open_speaker

    path = Path(name)
    if path.name == "export" and RunDir(path.parent).exists():
        name = str(path.parent)
    elif (path / "config.json").is_file():
        config, _ = compose.try_compose(["model=hf", "peft=none"])
        config.model.name = str(path)
        return open_base(config)
    elif adapter.is_adapter(path):
        hint = "name its run, or a folder with all weights: launcher export RUN --merge"
        raise ConfigError("adapters of a base that it does not say", where=name, hint=hint)
    run_name, _, part = name.partition(":")
    if part and not part.isdecimal() and part != "base":
        raise ConfigError(f"{part!r} is no part of a run", where=name, hint="RUN or RUN:STEP")
    run = find_run(run_name)
    if compose.load(run.config).objective.has_sequence_head:
        hint = "name a run that has trained a model of language"
        raise ConfigError("it answers nothing: it has a sequence head", where=name, hint=hint)
    step = int(part) if part.isdecimal() else None
    return open_speaker(run, checkpoint=step, base=part == "base")


def against(
    old: Sequence[OldAnswer],
    name: str,
    answers: Sequence[Generation],
    metrics: Sequence[Metric[Any]],
    old_name: str,
) -> dict[str, Any]:
    """The comparison of a model's answers with the old ones, as `launcher compare` makes it."""
    before = [replace(new, answer=old[new.id].answer, cut=False) for new in answers]
    pair = Results({"generation": before}), Results({"generation": list(answers)})
    if any(isinstance(metric, judge.WinRate) for metric in metrics):
        note("asking the judge")
    judge.settle(metrics, *pair)
    made = compare_all(*pair, metrics, {}, Resampling())
    lines = store.filled(store.predictions(*pair, metrics))
    return {"base_name": old_name, "tuned_name": name, **made, "answers": lines}


def is_within(made: Mapping[str, Any], margin: float) -> bool:
    """Whether each metric that decides is shown to have lost no more than this share of the old
    score: the bad end of its interval lies within.

    Resampling shows no loss that no answer has: then the share that may lose all, though none of so
    many did, is added.
    """
    rows = [row for row in made["metrics"].values() if row["decides"]]
    return bool(rows) and all(_is_kept(row, margin) for row in rows)


def _is_kept(row: Mapping[str, Any], margin: float) -> bool:
    is_gain = row["higher_is_better"]
    base, end = row["base"], row["interval"][0 if is_gain else 1]
    if base is None or row["tuned"] is None or end is None:
        return False
    lost = -end if is_gain else end
    if not row["worsened"]:
        lost += significance.unseen(row["records"]) * (abs(base) or float(not is_gain))
    return bool(lost <= margin * abs(base))


def _options(parsed: argparse.Namespace) -> EvalConfig:
    options = EvalConfig()
    named = [name for text in parsed.metric or () for name in text.split(",") if name]
    named += [f"{GRADER}{path}" for path in parsed.grader or ()]
    if parsed.judge_url or parsed.judge_model:
        named.append("judge")
    options.metrics = list(dict.fromkeys(named)) or None
    options.judge.url, options.judge.model = parsed.judge_url, parsed.judge_model
    options.answer_pattern = parsed.answer_pattern
    if parsed.max_new_tokens is not None:
        options.max_new_tokens = parsed.max_new_tokens
    return options


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; the comparisons on stdout."""
    parser = argparse.ArgumentParser(prog="launcher openai verify", description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--metric", action="append")
    parser.add_argument("--grader", action="append")
    parser.add_argument("--answer-pattern")
    parser.add_argument("--judge-url")
    parser.add_argument("--judge-model")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--require", choices=tuple(REQUIRED), default="not-worse")
    parser.add_argument("--margin", type=float)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", type=Path)
    options = parser.parse_args(argv)
    refused: list[bool] = []

    def work() -> None:
        made = _compared(options)
        for one in made:
            good = summary.outcome(one) not in REQUIRED[options.require]
            if options.margin is not None:
                good = good and is_within(one, options.margin)
            one["good_enough"] = good
            refused.append(not good)
        if options.html:
            report.build_comparison(made, options.html)
            note(f"page: {options.html}")
        print(json.dumps(made, indent=2) if options.json else "\n\n".join(map(_told, made)))

    code = exit_code_of(work)
    return code or (ExitCode.data if any(refused) else ExitCode.ok)


def _told(made: Mapping[str, Any]) -> str:
    return f"{told(made)}\ngood enough: {'yes' if made['good_enough'] else 'no'}"


def _compared(options: argparse.Namespace) -> list[dict[str, Any]]:
    old = read(options.answers)
    settled = _options(options)
    decoding = Decoding(settled.max_new_tokens)
    made = []
    for lines, old_name, name in _pairs(old, options):
        metrics = metrics_of(settled, lines)
        prompts = [TokenizedPrompt(i, [], one.reference, one.where) for i, one in enumerate(lines)]
        for metric in metrics:  # before a model is loaded
            metric.check(prompts)
        made.append(against(lines, name, asked(name, lines, decoding), metrics, old_name))
    return made


def _pairs(
    old: Sequence[OldAnswer], options: argparse.Namespace
) -> list[tuple[Sequence[OldAnswer], str, str]]:
    """What is compared: answers, whose they are, and the model that is asked the same."""
    by_model: dict[str, list[OldAnswer]] = {}
    for one in old:
        by_model.setdefault(one.model, []).append(one)
    all_of = next(iter(by_model)) if len(by_model) == 1 else ""
    pairs: list[tuple[Sequence[OldAnswer], str, str]] = []
    for name in options.models:
        replayed = read_json(Path(name) / "replay.json")
        if not isinstance(replayed, dict):
            pairs.append((old, all_of or str(options.answers), name))
            continue
        runs = {row["model"]: row["run"] for row in replayed["jobs"] if row["model"]}
        for model, lines in by_model.items():
            if model not in runs:
                found = f"no job there has made {model!r}" if model else "the line names no `model`"
                hint = (
                    f"write whose answer it is, one of {', '.join(runs) or 'none'}; or name a run"
                )
                raise ConfigError(found, where=lines[0].where, hint=hint)
            pairs.append((lines, model, runs[model]))
    return pairs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
