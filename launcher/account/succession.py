"""Which jobs of an account are run again, as what, and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launcher.account.layout import Folder, KeptContent
from launcher.core.errors import ConfigError, Problem, did_you_mean
from launcher.core.files import storage_errors
from launcher.serve import judges
from launcher.serve.db.tables import Job
from launcher.serve.http.wire import UNKNOWN
from launcher.serve.jobs.methods import METHODS
from launcher.serve.jobs.wire_jobs import NewJob, WandbIntegration
from launcher.serve.site import Offer, Site

#: States of jobs that are run again if somebody asks for it.
ENDED_OTHERWISE = {"failed": "has failed", "cancelled": "was cancelled"}
#: What stands in the name of a fine-tuned model behind its base and organization.
_SUFFIX = re.compile(r"ft:[^:]*:[^:]*:([^:]+):[^:]+")


@dataclass(frozen=True, slots=True)
class Successor:
    """A job that is run again: the account's record of it, and what it asks for here."""

    record: Mapping[str, Any]
    asked: NewJob
    offer: str
    """The site's model for its base."""
    parent: str | None
    """Id of the job whose model it starts from."""
    before_last: int
    """Which of that job's models: 0 is the last one, 1 the checkpoint before it."""
    remark: str
    """In what it is not as the account's record asks for it; "" if in nothing."""
    training: KeptContent
    validation: KeptContent | None
    examples: int
    """Lines of the training file."""

    @property
    def id(self) -> str:
        """The same as in the account."""
        return str(self.record["id"])

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.asked.method.type if self.asked.method else "supervised"

    def row(self, project_id: str, base: str | None = None) -> Job:
        """The job for a service's table, under the id and with the model's name that it had.

        `base` is the model that it starts from, if that has another name here.
        """
        asked = {**self.asked.asked(), "model": self.asked.model, "offer": self.offer}
        if name := self.record.get("fine_tuned_model"):
            asked["final_name"] = str(name)
        return Job(
            id=self.id,
            project_id=project_id,
            model=self.offer if self.parent is None else base or self.asked.model,
            training_file=self.asked.training_file,
            validation_file=self.asked.validation_file,
            method=self.method,
            asked=asked,
            suffix=self.asked.suffix,
            seed=self.asked.seed or 0,
            labels=self.asked.metadata,
            integrations=[one.model_dump() for one in self.asked.integrations or []] or None,
            hyperparameters={},
            cursor={},
        )


@dataclass(frozen=True, slots=True)
class JobLeftOut:
    """A job that is not run again, and why."""

    id: str
    why: str


class CannotReplay(Exception):
    """Why a job cannot be run again."""


def settle(
    folder: Folder, site: Site, *, also: Iterable[str] = (), only: Sequence[str] | None = None
) -> tuple[list[Successor], list[JobLeftOut]]:
    """The jobs to run again, each behind the one whose model it starts from, and the others.

    Those that succeeded, and those in a state of `also`; `only` names some, with the jobs that
    they start from. Raises `ConfigError` for models that the site does not name.
    """
    records = {record["id"]: record for record in folder.records("jobs")}
    makers = _makers(folder, records.values())
    if only is not None:
        _require_known(only, records)
        records = {name: records[name] for name in _with_parents(only, records, makers)}
    wanted = {"succeeded", *also}
    found: dict[str, Successor] = {}
    left: dict[str, JobLeftOut] = {}
    unmapped: dict[str, str] = {}
    waiting = list(records.values())
    while waiting:
        later = []
        for record in waiting:
            parent, before_last = makers.get(str(record.get("model")), (None, 0))
            if parent in records and parent not in found and parent not in left:
                later.append(record)
                continue
            try:
                if str(record.get("status")) not in wanted:
                    raise CannotReplay(_not_wanted(str(record.get("status"))))
                origin = parent, before_last
                found[record["id"]] = _successor(folder, site, record, origin, found, unmapped)
            except CannotReplay as error:
                left[record["id"]] = JobLeftOut(record["id"], str(error))
        if len(later) == len(waiting):  # each waits for another of them
            left |= {r["id"]: JobLeftOut(r["id"], "it starts from its own model") for r in later}
            break
        waiting = later
    if unmapped:
        raise ConfigError([_unmapped(model, job) for model, job in unmapped.items()])
    return list(found.values()), list(left.values())


def _makers(
    folder: Folder, records: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[str | None, int]]:
    """Model -> the job that made it, and how many checkpoints came after it."""
    found: dict[str, tuple[str | None, int]] = {}
    for record in records:
        name = record["id"]
        listed = folder.lines("jobs", name, "checkpoints.jsonl")
        steps = sorted(listed, key=lambda one: -_step(one))
        names = [str(one.get("fine_tuned_model_checkpoint")) for one in steps]
        made = str(record.get("fine_tuned_model") or "")
        if made and made not in names:  # the last model is no checkpoint there: it comes before
            names.insert(0, made)
        found |= {model: (name, place) for place, model in enumerate(names)}
    return found


def _step(checkpoint: Mapping[str, Any]) -> int:
    found = checkpoint.get("step_number")
    return found if isinstance(found, int) else 0


def _not_wanted(status: str) -> str:
    if status in ENDED_OTHERWISE:
        return f"it {ENDED_OTHERWISE[status]}; --also {status} takes such jobs too"
    return f"its state is {status}"


def _successor(
    folder: Folder,
    site: Site,
    record: Mapping[str, Any],
    origin: tuple[str | None, int],
    found: Mapping[str, Successor],
    unmapped: dict[str, str],
) -> Successor:
    model, (parent, before_last) = str(record.get("model")), origin
    if model.startswith("ft:"):
        if parent is None:
            raise CannotReplay(f"it starts from a model that no job here has made: {model}")
        if parent not in found:
            raise CannotReplay(f"it starts from the model of {parent}, which is not run again")
        offer = found[parent].offer
    else:
        mapped = site.resolve(model)
        if mapped is None:
            unmapped.setdefault(model, record["id"])
            raise CannotReplay(f"nothing stands for {model}")
        offer = mapped
    asked, remark = _asked(record, site, offer)
    if asked.grader is not None:
        _require_grader(asked.grader, site)
    training = _content(folder, asked.training_file, "training")
    validation = None
    if asked.validation_file is not None:
        validation = _content(folder, asked.validation_file, "validation")
    lines = _lines(training.path)
    return Successor(record, asked, offer, parent, before_last, remark, training, validation, lines)


def _asked(record: Mapping[str, Any], site: Site, offer: str) -> tuple[NewJob, str]:
    """What the job asked for, and a remark on what is left out of it; `CannotReplay` for what
    cannot be asked for here, where `offer` stands for its model."""
    said = record.get("method")
    method = said if isinstance(said, dict) else {"type": "supervised"}
    name = method.get("type")
    if not isinstance(name, str) or name not in METHODS:
        can = " and ".join(METHODS)
        raise CannotReplay(f"its method {name} cannot be run again; {can} can")
    inside = method.get(name)
    own = dict(inside) if isinstance(inside, dict) else {}
    numbers = _numbers(record.get("hyperparameters"), own.get("hyperparameters"))
    own["hyperparameters"], no_effort = _with_effort(numbers, name, offer, site.models[offer])
    integrations, no_wandb = _integrations(record.get("integrations"), site)
    remark = "; ".join(filter(None, (no_effort, no_wandb)))
    name_of = _SUFFIX.match(str(record.get("fine_tuned_model") or ""))
    body = {
        "training_file": record.get("training_file"),
        "validation_file": record.get("validation_file"),
        "model": record.get("model"),
        "suffix": record.get("user_provided_suffix") or (name_of[1] if name_of else None),
        "seed": record.get("seed"),
        "metadata": record.get("metadata"),
        "integrations": integrations,
        "method": {"type": name, name: own},
    }
    try:
        return NewJob.model_validate(body), remark
    except ValidationError as error:
        first = error.errors()[0]
        named = [*map(str, first["loc"]), *([first["ctx"]["name"]] if _is_unknown(first) else [])]
        raise CannotReplay(f"{'.'.join(named)}: {first['msg']}") from error


def _numbers(beside: Any, inside: Any) -> Any:
    """Hyperparameters, each by itself: a number in the method, else one beside it, else auto."""
    found: dict[str, Any] = {}
    for said in (beside, inside):
        if said is not None and not isinstance(said, dict):
            return said  # refused as what it is
        for name, value in (said or {}).items():
            if value is not None and (value != "auto" or name not in found):
                found[name] = value
    return found


def _with_effort(numbers: Any, method: str, name: str, offer: Offer) -> tuple[Any, str]:
    """Hyperparameters without an effort that the model's template does not read, and that it is
    left out."""
    is_known = offer.reasoning_effort or method != "reinforcement" or not isinstance(numbers, dict)
    if is_known or numbers.get("reasoning_effort", "default") == "default":
        return numbers, ""
    kept = {key: value for key, value in numbers.items() if key != "reasoning_effort"}
    effort = numbers["reasoning_effort"]
    return kept, (
        f"its reasoning_effort {effort!r} is left out: models.{name} of the mapping does not say"
        " reasoning_effort: true"
    )


def _require_grader(wire: Mapping[str, Any], site: Site) -> None:
    """`CannotReplay` for a grader that a job here cannot have."""
    for model in judges.models_of(wire):
        if model not in site.judges:
            raise CannotReplay(
                f"its grader asks {model}: say by `judges` of the mapping where that is"
            )
    try:
        judges.grader_of(wire, site, "method.reinforcement.grader")
    except ConfigError as error:
        first = error.problems[0]
        raise CannotReplay(f"{first.where}: {first.found}") from error


def _integrations(said: Any, site: Site) -> tuple[Any, str]:
    """What a job may ask for of the integrations that a record has, and what is left out."""
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        return said, ""  # refused as what it is, unless there are none
    kept = [_integration(one) for one in said if site.has_wandb or one.get("type") != "wandb"]
    remark = "its W&B integration is left out: this machine is not logged in to W&B"
    return kept or None, remark if len(kept) < len(said) else ""


def _integration(said: Mapping[str, Any]) -> Any:
    """Without what is told and cannot be asked for, such as the id of a run."""
    about = said.get("wandb")
    if not isinstance(about, dict):
        return said  # refused as what it is
    kept = {name: about[name] for name in WandbIntegration.model_fields if name in about}
    return {"type": said.get("type"), "wandb": kept}


def _is_unknown(error: Any) -> bool:
    return bool(error["type"] == UNKNOWN)


def _content(folder: Folder, name: str, what: str) -> KeptContent:
    try:
        kept = folder.kept(name)
    except ValueError as error:
        raise CannotReplay(f"its {what} file: {error}") from error
    if kept is None:
        raise CannotReplay(f"its {what} file {name} could not be read")
    if kept.fault:
        raise CannotReplay(f"its {what} file {name} is not what the account says: {kept.fault}")
    return kept


def _lines(path: Path) -> int:
    with storage_errors(path), open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _require_known(only: Sequence[str], records: Mapping[str, Any]) -> None:
    unknown = [name for name in only if name not in records]
    if unknown:
        hint = did_you_mean(unknown[0], records)
        raise ConfigError(f"there is no job {unknown[0]!r} in it", where="--jobs", hint=hint)


def _with_parents(
    only: Sequence[str],
    records: Mapping[str, Mapping[str, Any]],
    makers: Mapping[str, tuple[str | None, int]],
) -> list[str]:
    chosen = set(only)
    waiting = list(only)
    while waiting:
        parent, _ = makers.get(str(records[waiting.pop()].get("model")), (None, 0))
        if parent is not None and parent not in chosen:
            chosen.add(parent)
            waiting.append(parent)
    return [name for name in records if name in chosen]


def _unmapped(model: str, job: str) -> Problem:
    hint = f"add a line below `models`, such as {model}: {{overrides: [model=qwen3-4b, peft=lora]}}"
    return Problem("models", f"nothing stands for {model}, of {job}", hint)
