"""Graders of clients: which there are, and the endpoints and limits that the site gives them.

A client names a model, never an address: where it is asked is the site's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from launcher.config.schema import GradersConfig, JudgeConfig, SandboxLevel
from launcher.core.errors import ConfigError, Problem, did_you_mean
from launcher.graders.grader import Grader, Setting
from launcher.graders.members import require_small
from launcher.graders.wire import MAX_FILE, from_wire
from launcher.serve.site import Site

#: Types that clients may send, as their own libraries have them: nothing that reads a path or a
#: schema of theirs.
TYPES = ("string_check", "text_similarity", "python", "score_model", "multi")
#: The same as criteria of evals.
CRITERIA = ("label_model", "string_check", "text_similarity", "python", "score_model")
#: The same within `multi`.
PARTS = ("string_check", "text_similarity", "python", "score_model", "label_model")


def setting(site: Site) -> Setting:
    """The endpoints and limits of the site."""
    limits = site.graders
    return Setting(
        judges={name: JudgeConfig(**members) for name, members in endpoints(site).items()},
        limits=GradersConfig(
            sandbox=SandboxLevel[limits.sandbox],
            timeout_s=limits.timeout_s,
            memory_mb=limits.memory_mb,
            workers=1,
        ),
    )


def endpoints(site: Site) -> dict[str, dict[str, Any]]:
    """Name of a model -> its endpoint, as `eval.endpoints` of a run has it."""
    return {name: asdict(judge) for name, judge in site.judges.items()}


def grader_of(
    wire: Mapping[str, Any], site: Site, where: str, types: tuple[str, ...] = TYPES
) -> Grader:
    """The grader of a client, of one of the `types`; `ConfigError` with all that is wrong with it,
    problems of members named below `where`."""
    require_small(wire, where)
    if problems := [*_refused(wire, where, types)]:
        raise ConfigError(problems)
    if len(content := as_file(wire)) > MAX_FILE:
        found = f"{len(content):,} bytes"
        raise ConfigError(found, where=where, hint=f"{MAX_FILE:,} are allowed")
    return from_wire(wire, setting(site), where)


def as_file(wire: Mapping[str, Any]) -> str:
    """The content of a grader's file: whatever a text holds, it is read as it was."""
    text: str = yaml.safe_dump(dict(wire), sort_keys=False)
    return text


def models_of(wire: Mapping[str, Any]) -> list[str]:
    """The models that a grader asks."""
    forms = [wire, *parts_of(wire).values()]
    return sorted({str(own["model"]) for own in forms if own.get("model")})


def parts_of(wire: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The graders within a `multi`, by their names; none of another."""
    inner = wire.get("graders") if wire.get("type") == "multi" else None
    if not isinstance(inner, Mapping):
        return {}
    if isinstance(inner.get("type"), str):  # one alone, as the clients' types have it
        inner = {str(inner.get("name")): inner}
    return {str(name): own for name, own in inner.items() if isinstance(own, Mapping)}


def _refused(wire: Mapping[str, Any], where: str, types: tuple[str, ...]) -> Iterator[Problem]:
    """Types that are not for clients."""
    yield from _type(wire, where, types)
    for name, own in parts_of(wire).items():
        yield from _type(own, f"{where}.graders.{name}", PARTS)


def _type(wire: Mapping[str, Any], where: str, known: tuple[str, ...]) -> Iterator[Problem]:
    kind = wire.get("type")
    if kind not in known:
        said = "has no type" if kind is None else f"there is no grader {kind!r} here"
        yield Problem(f"{where}.type", said, did_you_mean(str(kind), known))
