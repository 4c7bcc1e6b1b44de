"""Text that goes to Slurm and comes from it: batch scripts, states, lists of jobs. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.launch.queue import Ending, QueueJob
from launcher.launch.spec import AttemptState

#: Slurm's word for a job's state -> what it means here; words not listed are unknown.
STATES: dict[str, AttemptState] = {
    **dict.fromkeys(
        ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
        AttemptState.queued,
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT")
        + ("STOPPED", "SUSPENDED"),
        AttemptState.running,
    ),
    **dict.fromkeys(
        ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED")
        + ("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
        AttemptState.gone,
    ),
}
_ENDINGS = {
    "CANCELLED": Ending.cancelled,
    "OUT_OF_MEMORY": Ending.out_of_memory,
    "TIMEOUT": Ending.time_limit,
    "PREEMPTED": Ending.preempted,
    "NODE_FAIL": Ending.lost_node,
}
#: How squeue is asked, so that `parse_jobs` can read it; the reason is last, it may hold anything.
JOB_FORMAT = "%i|%T|%r"


def described(number: str, word: str, reason: str = "") -> QueueJob:
    """A job from its id (`12`, or `12_3` of an array), Slurm's word for its state, and why.

    The state is `unknown` for a word that this version does not know.
    """
    ending = _ENDINGS.get(word, Ending.other)
    if ending is Ending.cancelled and "Dependency" in reason:
        ending = Ending.dropped
    state = STATES.get(word, AttemptState.unknown)
    return QueueJob(number, state, word, reason, word == "COMPLETING", ending)


def parse_jobs(text: str) -> dict[str, QueueJob]:
    """Jobs in the output of `squeue -h -r -o JOB_FORMAT` or `sacct -n -P -X -o jobid,state`."""
    jobs: dict[str, QueueJob] = {}
    for line in text.splitlines():
        number, _, rest = line.strip().partition("|")
        word, _, reason = rest.partition("|")
        # "CANCELLED by 1000", and "CANCELLED+" where a column was too narrow.
        words = re.findall(r"[A-Z_]+", word)
        if words:
            why = "" if reason in ("None", "0:0") else reason
            jobs |= {each: described(each, words[0], why) for each in _expanded(number)}
    return jobs


def _expanded(number: str) -> list[str]:
    """`7_[0-2,5%3]`, tasks of an array that have not been started, is 7_0, 7_1, 7_2 and 7_5."""
    found = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", number)
    if not found:
        return [number] if number else []
    tasks: list[int] = []
    for part in found[2].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups()  # type: ignore[union-attr]
        tasks += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{found[1]}_{task}" for task in tasks]


def parse_fields(text: str) -> dict[str, str]:
    """KEY=VALUE words of `scontrol show`; the first of a key counts."""
    fields: dict[str, str] = {}
    for word in text.split():
        key, separator, value = word.partition("=")
        if separator:
            fields.setdefault(key, value)
    return fields


def minutes(text: str) -> float | None:
    """A Slurm time limit in minutes; None if there is none. `ValueError` if it is not one.

    MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES[:SECONDS]].
    """
    text = text.strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE", "N/A"):
        return None
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"{text!r} is not a time limit")
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, mins, secs = (*parts, 0, 0)[:3]
        return int(days) * 1440 + hours * 60 + mins + secs / 60
    if len(parts) < 3:
        return parts[0] + (parts[1] / 60 if len(parts) == 2 else 0)
    return parts[0] * 60 + parts[1] + parts[2] / 60


# ---- what the ranks' end looks like to srun

_ENDED = re.compile(r"^srun: error: (\S+): tasks? ([\d,\[\]-]+): (.+?)\s*$", re.MULTILINE)
_SIGNALS = {
    "Killed": 9,
    "Terminated": 15,
    "Aborted": 6,
    "Segmentation fault": 11,
    "Bus error": 7,
    "Floating point exception": 8,
    "Illegal instruction": 4,
    "User defined signal 1": 10,
    "Hangup": 1,
    "Interrupt": 2,
}
#: After the first death srun ends the others with these, so they say nothing about the cause.
_BY_SRUN = (-15,)


def first_death(text: str) -> tuple[int, int] | None:
    """(rank, exit code) of the rank that srun saw end badly first; minus the signal if killed.

    A rank killed by a signal comes before exit codes, which may be its peers' reaction. None if
    srun names nobody.
    """
    # After that line srun itself ends the others.
    before, _, after = text.partition("Terminating StepId=")
    deaths = []
    for _, tasks, how in _ENDED.findall(before) or _ENDED.findall(after):
        code = _code(how)
        if code:
            deaths.append((_first(tasks), code))
    killed = [death for death in deaths if death[1] < 0 and death[1] not in _BY_SRUN]
    # Once a rank has failed by itself, srun kills the others: kills that follow are not the cause.
    if killed and deaths[0][1] > 0 and deaths[0][1] not in (1, 75):
        return deaths[0]
    causes = killed or deaths
    return causes[0] if causes else None


def out_of_memory(text: str) -> int | None:
    """Rank for whose memory Slurm or the kernel has ended the step; None if for nobody's.

    The rank is 0 where srun names none.
    """
    for _, tasks, how in _ENDED.findall(text):
        if "Out Of Memory" in how:
            return _first(tasks)
    if not re.search(r"Detected \d+ oom[_-]kill event", text):
        return None
    killed = [tasks for _, tasks, how in _ENDED.findall(text) if how.startswith("Killed")]
    return _first(killed[0]) if killed else 0


def _first(tasks: str) -> int:
    """The first of tasks like "1,3-5"."""
    return int(re.findall(r"\d+", tasks)[0])


def is_preempted(fields: Mapping[str, str]) -> bool:
    """Whether `scontrol show job` tells of a preemption since the job has started."""
    when = fields.get("PreemptTime", "None")
    # Both are local times in ISO 8601.
    return when[:1].isdigit() and when >= fields.get("StartTime", "")


def _code(how: str) -> int:
    code = re.search(r"[Ee]xit(?:ed with exit)? code (\d+)", how)
    if code:
        # A shell or an agent between srun and the rank turns a signal into 128 and its number.
        number = int(code[1])
        return 128 - number if number > 128 and number != 130 else number
    if "Out Of Memory" in how:
        return 4
    words = how.partition(" (")[0]
    return -_SIGNALS.get(words, 9)


# ---- batch scripts


def quote(text: Any) -> str:
    """`text` as one word of bash, whatever it holds."""
    return shlex.quote(str(text))


def option(value: Any) -> str:
    """`value` in an `#SBATCH --key=value` line, by sbatch's own rules of quoting.

    Raises `ConfigError` for line breaks, which such a line cannot hold.
    """
    text = line(value)
    if re.fullmatch(r"[\w.,:;+=@%/\[\]^~!*&|()-]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def line(value: Any) -> str:
    """`value` as the rest of a line of the header."""
    text = str(value)
    if not text or not text.isprintable():
        raise ConfigError(
            f"{text!r} cannot stand in a line of a batch script",
            where="cluster",
            hint="give one line of text without control characters",
        )
    return text


#: Variable that sbatch reads -> (its option, the key that says the same).
_KEYS = {
    "SBATCH_ACCOUNT": ("account", "cluster.account"),
    "SBATCH_CONSTRAINT": ("constraint", "cluster.constraint"),
    "SBATCH_GPUS_PER_NODE": ("gpus-per-node", "cluster.gpus_per_node"),
    "SBATCH_MEM_PER_NODE": ("mem", "cluster.memory"),
    "SBATCH_PARTITION": ("partition", "cluster.partition"),
    "SBATCH_QOS": ("qos", "cluster.qos"),
    "SBATCH_RESERVATION": ("reservation", "cluster.reservation"),
    "SBATCH_TIMELIMIT": ("time", "cluster.time"),
}


def unread(script: str, variables: Mapping[str, str]) -> list[str]:
    """A line for people on each of sbatch's `variables` that is not passed on to it, and that the
    batch script does not say in its own way."""
    stated = set(re.findall(r"^#SBATCH --([a-z-]+)", script, flags=re.MULTILINE))
    keyed = {name: _KEYS[name] for name in variables if name in _KEYS}
    lines = [
        f"note: {name} is not read: give {key}={shlex.quote(variables[name])}"
        for name, (option, key) in keyed.items()
        if option not in stated
    ]
    clusters = [name for name in variables if name.endswith("_CLUSTERS")]
    lines += [f"note: {name} is not read: SLURM_CONF says which cluster" for name in clusters]
    others = [name for name in variables if name not in keyed and name not in clusters]
    if others:
        lines.append(
            f"note: not read: {', '.join(others)}; options of sbatch stand in cluster.sbatch"
        )
    return lines


def render(template: str, folder: Path, context: Mapping[str, Any], own: Path | None) -> str:
    """The batch script of a packaged template, or of the user's `own` file in its place.

    Raises `ConfigError` for a template that cannot be read, is malformed or uses a name that
    `context` lacks.
    """
    import jinja2  # submission only

    base = own or folder / "run.sbatch.j2"
    environment = _environment(base.parent, folder)
    name = base.name if template == "run.sbatch.j2" else template
    try:
        if template == "array.sbatch.j2":
            _require_blocks(environment.get_template(base.name), ("output", "array", "run"))
        script: str = environment.get_template(name).render({**context, "base": base.name})
        return script
    except jinja2.TemplateNotFound as error:
        raise ConfigError(
            f"no such file: {base}",
            where="launch.template",
            hint="give the path of a template, or leave it out for the packaged one",
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"{error.filename or base}:{error.lineno}: {error.message}", where="launch.template"
        ) from error
    except jinja2.UndefinedError as error:
        raise ConfigError(
            f"{base}: {error.message}",
            where="launch.template",
            hint=f"a template may use: {', '.join(sorted(context))}",
        ) from error


@cache
def _environment(*folders: Path) -> Any:
    """jinja2's, which keeps the templates that it has compiled for the trials of a sweep."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - bash, quoted by the filters below
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder) for folder in folders]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quote=quote, option=option, line=line)
    return environment


def _require_blocks(template: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in template.blocks]
    if missing:
        raise ConfigError(
            f"{template.filename} has no block {', '.join(missing)}",
            where="launch.template",
            hint="keep the blocks of the packaged slurm/run.sbatch.j2: a sweep fills them",
        )
