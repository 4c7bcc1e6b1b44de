"""Making a study: answers of both models, by ready files or by a process of the run plane."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher import entry
from launcher.ab.prompts import ANSWER_HINT, Prompt, read_answers, read_prompts
from launcher.ab.study import AnswerPair, Study
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, DataError, ExitCode, LauncherError
from launcher.core.files import read_json
from launcher.core.rundir import find_run

_COMPARED = "`launcher compare` compares models that make no text"


def make(
    names: tuple[str, str],
    data: Path | None,
    folder: Path,
    *,
    question: str,
    max_new_tokens: int,
) -> tuple[Study, int]:
    """A new study in `folder`, and how many prompts were left out: both answers were the same.

    A name is that of a model, as `launcher compare` takes it, or of a file of ready answers; if
    both are files, `data` may be None. Raises `ConfigError` for names, `DataError` for prompts
    without an answer, and what the models' process ends with.
    """
    if Study(folder).path.exists():
        raise ConfigError("there is a study already", where=str(folder), hint="give another -o")
    files = {name: Path(name) for name in names if Path(name).is_file()}
    answers = {name: read_answers(path) for name, path in files.items()}
    if data is None and len(files) < len(set(names)):
        raise ConfigError("models need prompts", where="launcher ab new", hint="--data FILE")
    models = [name for name in dict.fromkeys(names) if name not in files]
    for name in models:
        _require_model(name)  # before a process that takes its time to start
    prompts = read_prompts(data or files[names[0]])
    if models:
        made = _ask(models, prompts, max_new_tokens)
        answers.update(zip(models, made, strict=True))
    for name in files:
        _require_all(prompts, answers[name], name)
    items = [
        AnswerPair(prompt.text, *(answers[name][prompt.text] for name in names))
        for prompt in prompts
    ]
    differing = [item for item in items if item.a != item.b]
    if not differing:
        found = f"both give the same answer to each of {len(items):,} prompts"
        hint = "there is nothing to judge: name two models that differ"
        raise DataError(found, where="launcher ab new", hint=hint)
    return Study.create(folder, names, differing, question), len(items) - len(differing)


def _require_model(name: str) -> None:
    config = Path(name, "config.json")
    if config.is_file():
        made = read_json(config, {}).get("architectures") or [""]
        if made[0].endswith("Classification"):
            raise ConfigError(f"{made[0]} cannot speak", where=name, hint=_COMPARED)
        return
    if Path(name, "adapter_config.json").is_file():
        found = "holds an adapter only, without the model that it changes"
        hint = "name the run that trained it, or a folder in which both are merged"
        raise ConfigError(found, where=name, hint=hint)
    run, _, part = name.partition(":")
    objective = compose.load(find_run(run).config).objective
    if objective.has_sequence_head:
        found = f"the run has trained {objective.model_kind}, which cannot speak"
        raise ConfigError(found, where=name, hint=_COMPARED)
    if part not in ("", "base") and not part.isdecimal():
        hint = "RUN, RUN:base or RUN:STEP"
        raise ConfigError(f"{part!r} is no part of a run", where=name, hint=hint)


def _require_all(prompts: Sequence[Prompt], answers: dict[str, str], name: str) -> None:
    missing = [prompt for prompt in prompts if prompt.text not in answers]
    if missing:
        more = f" (and {len(missing) - 1:,} others)" if len(missing) > 1 else ""
        raise DataError(f"no answer in {name}{more}", where=missing[0].where, hint=ANSWER_HINT)


def _ask(models: list[str], prompts: Sequence[Prompt], max_new_tokens: int) -> list[dict[str, str]]:
    """Each model's answers by prompt text; the process says on stderr what is wrong."""
    with tempfile.TemporaryDirectory(prefix="launcher-ab-") as folder:
        asked = Path(folder, "prompts.jsonl")
        lines = [
            json.dumps(
                {
                    "messages": each.messages,
                    "prompt": each.text,
                    "where": each.where,
                    "template_options": each.template_options,
                }
            )
            for each in prompts
        ]
        asked.write_text("\n".join(lines), encoding="utf-8")
        words = (str(asked), folder, *models, f"--max-new-tokens={max_new_tokens}")
        # What libraries say on stdout must not mix with ours: 2 is stderr.
        code = entry.call("launcher.inference.offline", *words, stdout=2)
        if code:
            raise ModelsFailed(code)
        return [read_answers(Path(folder, f"{number}.jsonl")) for number in range(len(models))]


class ModelsFailed(LauncherError):
    """The process of the models has ended with a code, and said why."""

    def __init__(self, code: int) -> None:
        super().__init__("the models gave no answers (see above)", where="launcher ab new")
        self.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.internal
