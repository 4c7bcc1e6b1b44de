"""Python and packages: whether what is installed is what this package asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launcher.config.schema import Config
from launcher.doctor.finding import CheckFinding, Seen, failed, passed, warned

#: The packages that are named one by one; of the others only what does not fit.
MAIN = ("torch", "deepspeed", "transformers", "peft")
_REPAIR = "install as docs/install.md says: pip install -c constraints.txt ."


def requirements() -> list[Requirement]:
    """What this package asks for, extras too, from its own metadata; [] if it is not installed."""
    try:
        lines = metadata.requires("launcher") or []
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines if "extra == 'dev'" not in line.replace('"', "'")]


def requires_python() -> str:
    """The range of Python versions that this package asks for."""
    try:
        return str(metadata.metadata("launcher")["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        return ""


def python(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """The interpreter's version."""
    asked, version = requires_python(), host["python"]
    if asked and not SpecifierSet(asked).contains(version, prereleases=True):
        hint = "make the environment anew with a Python of that range"
        yield failed("python", f"{version}, but {asked} is needed", hint)
    else:
        yield passed("python", version)


def packages(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """Each package's version against the requirement."""
    known = requirements()
    if not known:
        yield warned("packages", "launcher is not installed, so nothing is known", _REPAIR)
    for requirement in known:
        yield from judge(requirement, host["packages"].get(requirement.name))


def judge(requirement: Requirement, version: str | None) -> Iterator[CheckFinding]:
    """One package; `version` None means that it is not installed."""
    name, asked = requirement.name, requirement.specifier
    optional = requirement.marker is not None
    if version is None:
        if not optional:
            yield failed(name, f"is not installed ({asked} is needed)", _REPAIR)
    elif not asked.contains(version, prereleases=True):
        say = warned if optional else failed
        yield say(name, f"{version}, but {asked} is needed", _REPAIR)
    elif name in MAIN:
        yield passed(name, version)


def same_everywhere(seen: Seen) -> Iterator[CheckFinding]:
    """Versions that differ between hosts: ranks would compute different things, or not meet."""
    if len(seen.hosts) < 2:
        return
    for name in ("python", *seen.hosts[0]["packages"]):
        found = {host["host"]: _of(host, name) for host in seen.hosts}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{version} on {host}" for host, version in found.items())
            yield failed(name, f"differs between hosts: {listed}", "use one environment for all")


def _of(host: Mapping[str, Any], name: str) -> str | None:
    value = host["python"] if name == "python" else host["packages"].get(name)
    return None if value is None else str(value)
