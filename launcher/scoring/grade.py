"""`python -m launcher.scoring.grade FILE --grader G`: grades of answers in a JSON Lines file."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.config.schema import GradersConfig, JudgeConfig, SandboxLevel
from launcher.core import jsontext
from launcher.core.console import duration
from launcher.core.errors import ConfigError, DataError, ExitCode, did_you_mean
from launcher.core.files import storage_errors, write_atomic
from launcher.evals.comparison import agreement
from launcher.graders.errors import GradingError
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.sample import Sample
from launcher.graders.wire import from_file
from launcher.inference.command import exit_code_of, note

#: Answers that are graded, and kept, at a time.
CHUNK = 256
#: Seconds between two lines of progress.
_PROGRESS_S = 5.0
#: Problems of lines that are told.
_MOST_PROBLEMS = 5
_HINT = (
    'a line has an item and a sample, {"item": {"question": "..."}, "sample": "the answer"}, or'
    ' several "samples"; or it is the item, with the answer in a field: --answer FIELD'
)


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One answer of the file: its line, its place among the line's answers, and what it is."""

    line: int
    number: int
    item: Mapping[str, Any]
    sample: Sample

    def key(self, grader: str) -> str:
        """What its grade depends on."""
        parts = [grader, self.line, self.number, self.item, self.sample.plain()]
        return blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def read(path: Path, field: str | None) -> list[AnswerLine]:
    """The answers of a file; `DataError` for lines that have none."""
    found: list[AnswerLine] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found += _answers(line, number, f"{path}:{number}", field)
    except (OSError, UnicodeError) as error:
        hint = "give a JSON Lines file in UTF-8"
        raise DataError(f"cannot be read: {error}", where=str(path), hint=hint) from error
    if not found:
        raise DataError("there is no answer in it", where=str(path), hint=_HINT)
    return found


def _answers(line: str, number: int, where: str, field: str | None) -> Iterator[AnswerLine]:
    try:
        record = jsontext.DECODER.decode(line.strip())
    except (ValueError, RecursionError) as error:
        found, hint = jsontext.why_not(error)
        raise DataError(found, where=where, hint=hint) from error
    if not isinstance(record, dict):
        raise DataError("the line is no object", where=where, hint=_HINT)
    if field is not None:
        item, samples = record, [_follow(record, field, where, "--answer")]
    elif "samples" in record:
        item, samples = record.get("item", {}), record["samples"]
    elif "sample" in record:
        item, samples = record.get("item", {}), [record["sample"]]
    else:
        fields = ", ".join(record) or "none"
        raise DataError(f"no sample, and no --answer among {fields}", where=where, hint=_HINT)
    if not isinstance(item, dict) or not isinstance(samples, list):
        raise DataError("item is no object, or samples is no list", where=where, hint=_HINT)
    for place, sample in enumerate(samples):
        if not isinstance(sample, str | dict):
            raise DataError(f"the answer is no text: {sample!r:.80}", where=where, hint=_HINT)
        try:
            yield AnswerLine(number, place, item, Sample.of(sample))
        except DataError as error:
            problem = error.problems[0]
            raise DataError(problem.found, where=where, hint=problem.hint) from error


def _follow(record: Mapping[str, Any], path: str, where: str, option: str) -> Any:
    """The field of a path with dots."""
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = sorted(value) if isinstance(value, Mapping) else []
            found = f"there is no field {path!r}, which {option} names"
            raise DataError(found, where=where, hint=did_you_mean(name, known))
        value = value[name]
    return value


class Kept:
    """Grades in a file, a line each, from which a command that was stopped goes on.

    `found` counts those that were there at the start.
    """

    def __init__(self, path: Path | None, grader: Grader) -> None:
        self._path = path
        self._grader = json.dumps(grader.to_wire(), sort_keys=True)
        self._lines: dict[str, dict[str, Any]] = {}
        self.found = 0
        if path is not None and path.exists():
            with open(path, encoding="utf-8") as file:
                for line in file:
                    self._take(line)

    def _take(self, line: str) -> None:
        try:
            found = json.loads(line)
            self._lines[found["key"]] = found
            self.found += 1
        except (ValueError, LookupError, TypeError):
            pass  # cut short by what stopped the command

    def grade(self, answer: AnswerLine) -> Grade | None:
        """The grade that is kept of an answer; one without a score is asked for again."""
        found = self._lines.get(answer.key(self._grader))
        if found is None or found["score"] is None:
            return None
        errors = tuple(GradingError(**error) for error in found["errors"])
        return Grade(
            found["score"], errors, found["sub_scores"], found["metadata"], found["seconds"]
        )

    def add(self, graded: Sequence[tuple[AnswerLine, Grade]]) -> None:
        """Keep further grades."""
        if self._path is None:
            return
        with storage_errors(self._path), open(self._path, "a", encoding="utf-8") as file:
            # What a kill has cut short stays a line of its own.
            file.write("\n" + "".join(self._line(*pair) for pair in graded))

    def settle(self, graded: Sequence[tuple[AnswerLine, Grade]]) -> None:
        """Write all grades anew, in the order of the answers."""
        if self._path is not None:
            write_atomic(self._path, "".join(self._line(*pair) for pair in graded))

    def _line(self, answer: AnswerLine, grade: Grade) -> str:
        about = {"line": answer.line, "sample": answer.number, "key": answer.key(self._grader)}
        content = {**about, **asdict(grade), "seconds": round(grade.seconds, 6)}
        return json.dumps(content, ensure_ascii=False, default=str) + "\n"


def grade_file(
    answers: Sequence[AnswerLine], grader: Grader, kept: Kept
) -> Iterator[list[tuple[AnswerLine, Grade]]]:
    """The grades of all answers, chunk by chunk, in order; what is kept is not graded again."""
    start, done, new = time.monotonic(), 0, 0
    told = start
    for begin in range(0, len(answers), CHUNK):
        chunk = answers[begin : begin + CHUNK]
        known = {i: grade for i, answer in enumerate(chunk) if (grade := kept.grade(answer))}
        asked = [(i, answer) for i, answer in enumerate(chunk) if i not in known]
        grades = grader.grade_all([(answer.item, answer.sample) for _, answer in asked])
        known |= {i: grade for (i, _), grade in zip(asked, grades, strict=True)}
        if asked:
            kept.add([(answer, known[i]) for i, answer in asked])
        done, new = done + len(chunk), new + len(asked)
        now = time.monotonic()
        if now - told > _PROGRESS_S and new:
            told = now
            left = (len(answers) - done) * (now - start) / new
            note(f"graded {done:,} of {len(answers):,}, {duration(left)} left")
        yield [(answer, known[i]) for i, answer in enumerate(chunk)]


def summary(
    graded: Sequence[tuple[AnswerLine, Grade]], grader: Grader, labels: Sequence[Any] | None
) -> dict[str, Any]:
    """All that is told of the grades, as JSON; figures that are not finite are None."""
    scores = [grade.score for _, grade in graded]
    lines = [answer.line for answer, _ in graded]
    names = dict.fromkeys(name for _, grade in graded for name in grade.sub_scores)
    errors = [error for _, grade in graded for error in grade.errors]
    seconds = sorted(grade.seconds for _, grade in graded)
    told = {
        "grader": grader.name,
        "answers": len(graded),
        "graded": sum(score is not None for score in scores),
        "errors": dict(Counter(error.kind for error in errors)),
        "example": errors[0].message if errors else None,
        "score": _estimate(_mean(lines, scores)),
        "sub_scores": {
            name: _estimate(_mean(lines, [grade.sub_scores.get(name) for _, grade in graded]))
            for name in names
        },
        "seconds": {
            "sum": round(math.fsum(seconds), 3),
            "median": round(seconds[len(seconds) // 2], 6) if seconds else None,
            "highest": round(seconds[-1], 6) if seconds else None,
        },
    }
    if labels is not None:
        told["agreement"] = _agreement([grade for _, grade in graded], labels)
    return told


def _mean(lines: Sequence[int], scores: Sequence[float | None]) -> agreement.Estimate:
    sums: dict[int, list[float]] = {}
    for line, score in zip(lines, scores, strict=True):
        if score is not None:
            total = sums.setdefault(line, [0.0, 0])
            total[0], total[1] = total[0] + score, total[1] + 1
    return agreement.mean([total for total, _ in sums.values()], [n for _, n in sums.values()])


def _estimate(found: agreement.Estimate) -> dict[str, float | None]:
    return {name: x if math.isfinite(x) else None for name, x in asdict(found).items()}


def _agreement(grades: Sequence[Grade], labels: Sequence[Any]) -> dict[str, Any]:
    """Between grades and what people say: of labels accuracy and kappa, of numbers correlations."""
    pairs = [(g, label) for g, label in zip(grades, labels, strict=True) if g.score is not None]
    known = {label for _, label in pairs}
    scores = [float(grade.score or 0.0) for grade, _ in pairs]
    if not all(isinstance(label, bool | int | float) for label in known):
        given = [str(grade.metadata.get("label", grade.score)) for grade, _ in pairs]
        found = agreement.of_labels(given, [str(label) for _, label in pairs])
    elif known <= {0, 1}:
        given = [str(int(score >= 0.5)) for score in scores]
        found = agreement.of_labels(given, [str(int(label)) for _, label in pairs])
    else:
        found = agreement.of_scores(scores, [float(label) for _, label in pairs])
    return {"answers": len(pairs), **{name: _estimate(one) for name, one in found.items()}}


def told(made: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [f"{made['grader']}: {_shown(made['score'])}, {made['graded']:,} answers"]
    lines += [f"  {name}: {_shown(found)}" for name, found in made["sub_scores"].items()]
    if made["errors"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in made["errors"].items())
        without = made["answers"] - made["graded"]
        lines.append(f"{without} without a score; errors: {kinds}, e.g. {made['example']}")
    about = made.get("agreement")
    if about:
        figures = ", ".join(
            f"{name} {_shown(found)}" for name, found in about.items() if name != "answers"
        )
        lines.append(f"agreement with labels: {figures}, {about['answers']:,} answers")
    seconds = made["seconds"]
    if seconds["median"] is not None:
        lines.append(
            f"{seconds['sum']:.1f} s in graders, {seconds['median'] * 1000:.1f} ms an answer"
            f" (median), {seconds['highest'] * 1000:.1f} ms at most"
        )
    return "\n".join(lines)


def _shown(found: Mapping[str, float | None]) -> str:
    if found["value"] is None:
        return "none"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _setting(options: argparse.Namespace) -> Setting:
    judge = JudgeConfig(url=options.judge_url)
    if options.judge_url is not None and not options.judge_url.startswith(("http://", "https://")):
        hint = "for example --judge-url http://localhost:8000/v1"
        raise ConfigError(f"{options.judge_url!r} is no address", where="--judge-url", hint=hint)
    limits = GradersConfig(sandbox=SandboxLevel[options.sandbox])
    limits.timeout_s = options.timeout or limits.timeout_s
    limits.workers = options.workers
    judge.concurrency = options.workers or judge.concurrency
    return Setting(judge=judge, limits=limits)


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; the summary on stdout."""
    parser = argparse.ArgumentParser(prog="launcher grade", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--grader", required=True)
    parser.add_argument("--answer", metavar="FIELD")
    parser.add_argument("--labels", metavar="FIELD")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--at-least", type=float)
    parser.add_argument("--judge-url")
    parser.add_argument("--sandbox", choices=[one.name for one in SandboxLevel], default="auto")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args(argv)
    failed: list[bool] = []

    def work() -> None:
        grader = from_file(options.grader, _setting(options))
        try:
            made = _graded(options, grader)
        finally:
            grader.close()
        print(json.dumps(made, indent=2, ensure_ascii=False) if options.json else told(made))
        if not made["graded"]:
            hint = "mend what the errors say, and run the command again"
            raise DataError(f"no answer has a score: {made['example']}", where="grade", hint=hint)
        failed.append(options.at_least is not None and made["score"]["value"] < options.at_least)

    code = exit_code_of(work)
    return code or (ExitCode.data if any(failed) else ExitCode.ok)


def _graded(options: argparse.Namespace, grader: Grader) -> dict[str, Any]:
    answers = read(options.file, options.answer)
    labels = options.labels and [
        _follow(one.item, options.labels, f"{options.file}:{one.line}", "--labels")
        for one in answers
    ]
    items = {one.line: one.item for one in answers}
    wheres = ((f"{options.file}:{line}", item) for line, item in items.items())
    if problems := list(islice(grader.check(wheres), _MOST_PROBLEMS)):
        raise DataError(problems)
    kept, graded = Kept(options.out, grader), []
    try:
        for chunk in grade_file(answers, grader, kept):
            graded += chunk
    except KeyboardInterrupt:
        if options.out:
            there = Kept(options.out, grader).found  # also those of a chunk just written
            note(f"{there:,} grades are in {options.out}: the same command goes on from them")
        elif graded:
            note(f"of the first {len(graded):,} answers:")
            note(told(summary(graded, grader, labels and labels[: len(graded)])))
        raise
    kept.settle(graded)
    return summary(graded, grader, labels or None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
