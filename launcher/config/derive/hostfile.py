"""Hosts of a deepspeed launch: the hostfile, and which of its slots `include` and `exclude` leave.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema.launch import DeepspeedConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError, Problem, did_you_mean

_LINE = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)(?:\s+#.*)?")
#: A name for ssh, which must not be taken for one of its options.
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:%@\[\]-]*")
_HINT = "write a line `HOST slots=N` for each host, N being its GPUs; comments start with #"


@dataclass(frozen=True, slots=True)
class Host:
    """A host and the device slots that are used of it, ascending: one rank each."""

    name: str
    slots: tuple[int, ...]


def hosts(launch: DeepspeedConfig, base: Path) -> list[Host]:
    """The hosts of a launch in the order of the hostfile; a relative path starts at `base`.

    Raises `ConfigError` with all that is wrong in the hostfile, or in what was asked of it.
    """
    if launch.hostfile is None:
        raise ConfigError(
            "no hostfile is given",
            where="launch.hostfile",
            hint="launch.hostfile=FILE with a line `HOST slots=N` for each host",
        )
    found = read(Path(base, runtime.user_path(launch.hostfile)))
    if launch.include and launch.exclude:
        raise ConfigError(
            "include and exclude are given both", where="launch.include", hint="give one of them"
        )
    if launch.include:
        found = included(found, launch.include)
    if launch.exclude:
        found = excluded(found, launch.exclude)
    if launch.nodes not in (1, len(found)):
        raise ConfigError(
            f"{launch.nodes} nodes, but there are {len(found)} hosts to use in {launch.hostfile}",
            where="launch.nodes",
            hint="leave launch.nodes out; launch.include and launch.exclude choose hosts",
        )
    return [_cut(host, launch.processes) for host in found]


def _cut(host: Host, processes: int | None) -> Host:
    if processes is None:
        return host
    if processes > len(host.slots):
        raise ConfigError(
            f"{processes} ranks on a node, but host {host.name} has {len(host.slots)} slots",
            where="launch.processes",
            hint="leave it out to use all slots of the hostfile, or mend the hostfile",
        )
    return Host(host.name, host.slots[:processes])


def read(file: Path) -> list[Host]:
    """All hosts of a hostfile with all their slots."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(
            f"cannot read the hostfile: {reason}", where=str(file), hint=_HINT
        ) from error
    found: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        host = _parse(words)
        where = f"{file}:{number}"
        if isinstance(host, str):
            problems.append(Problem(where, host, _HINT))
        elif host.name in found:
            hint = "give each host one line with all its slots"
            problems.append(Problem(where, f"host {host.name} stands here twice", hint))
        else:
            found[host.name] = host
    if not found and not problems:
        problems.append(Problem(str(file), "there is no host in the hostfile", _HINT))
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _parse(words: str) -> Host | str:
    """The host of a line, or what is wrong with the line."""
    matched = _LINE.fullmatch(words)
    if matched is None:
        return f"not a line of a hostfile: {words[:100]!r}"
    name, slots = matched[1], int(matched[2])
    if not _HOST.fullmatch(name):
        return f"{name!r} is not the name of a host"
    if not 1 <= slots <= 1024:
        return f"{slots} slots: there must be at least one, at most 1024"
    return Host(name, tuple(range(slots)))


def included(hosts: list[Host], wanted: str) -> list[Host]:
    """The hosts and slots that are named, in the order of the hostfile."""
    chosen = _chosen("launch.include", hosts, wanted)
    return [Host(h.name, tuple(sorted(chosen[h.name]))) for h in hosts if h.name in chosen]


def excluded(hosts: list[Host], unwanted: str) -> list[Host]:
    """All but the hosts and slots that are named; `ConfigError` if nothing is left."""
    chosen = _chosen("launch.exclude", hosts, unwanted)
    left = [
        Host(host.name, tuple(s for s in host.slots if s not in chosen.get(host.name, ())))
        for host in hosts
    ]
    left = [host for host in left if host.slots]
    if not left:
        raise ConfigError("no host is left", where="launch.exclude", hint="exclude less")
    return left


def _chosen(key: str, hosts: list[Host], text: str) -> dict[str, set[int]]:
    """Host -> slots named by `host1@host2:0,2`; a host without slots means all of them."""
    known = {host.name: set(host.slots) for host in hosts}
    chosen: dict[str, set[int]] = {}
    for name, slots in _parts(key, text):
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{name!r} is not in the hostfile", where=key, hint=hint)
        wrong = slots - known[name]
        if wrong:
            raise ConfigError(
                f"host {name} has no slot {min(wrong)}",
                where=key,
                hint=f"its slots are 0 to {max(known[name])}",
            )
        chosen.setdefault(name, set()).update(slots or known[name])
    return chosen


def _parts(key: str, text: str) -> Iterator[tuple[str, set[int]]]:
    for part in text.split("@"):
        matched = re.fullmatch(r"([^:]+)(?::(\d+(?:,\d+)*))?", part.strip())
        if matched is None:
            raise ConfigError(
                f"{text!r} does not name hosts", where=key, hint="HOST[:SLOT,SLOT...][@HOST...]"
            )
        yield matched[1], {int(slot) for slot in (matched[2] or "").split(",") if slot}
