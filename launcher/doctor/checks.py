"""The table of checks: a new one is a function of `Seen`, or of a host's facts, and a row here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from launcher.doctor import machine, ranks, services, storage, versions
from launcher.doctor.finding import Check, Finding, HostCheck, Seen


def each_host(check: HostCheck) -> Check:
    """A check of all hosts; findings that read the same become one, with all their hosts."""

    def of_all(seen: Seen) -> Iterator[Finding]:
        found: dict[tuple[str, str, str, str], list[str]] = {}
        first: dict[tuple[str, str, str, str], Finding] = {}
        for host in seen.hosts:
            for finding in check(seen.config, host):
                key = (finding.check, finding.verdict.value, finding.found, finding.hint)
                found.setdefault(key, []).append(host["host"])
                first.setdefault(key, finding)
        for key, hosts in found.items():
            yield dataclasses.replace(first[key], hosts=tuple(hosts))

    return of_all


#: In the order of the table.
CHECKS: tuple[Check, ...] = (
    each_host(versions.python),
    each_host(versions.packages),
    versions.same_everywhere,
    machine.devices,
    machine.wanted_gpus,
    machine.cuda,
    machine.gpu_memory,
    each_host(machine.compiler),
    each_host(machine.open_files),
    each_host(machine.locked_memory),
    each_host(machine.shm),
    each_host(machine.threads),
    each_host(machine.variables),
    storage.run_root_here,
    each_host(storage.folders),
    services.schedulers,
    services.hub,
    services.wandb,
    ranks.came,
    storage.shared,
    ranks.clocks,
    ranks.collectives,
    ranks.bandwidth,
)


def judge(seen: Seen) -> list[Finding]:
    """Every finding of every check."""
    return [finding for check in CHECKS for finding in check(seen)]
