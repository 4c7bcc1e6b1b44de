"""Look at everything, then judge it by the table of checks: a new one is a function of `Seen`, or
of a host's facts, and a row here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launcher.config import create
from launcher.config.schema import Config
from launcher.config.schema.launch import LaunchConfig
from launcher.core.host import machine as host_machine
from launcher.core.host import storage as host_storage
from launcher.doctor import machine, probe, ranks, services, storage, versions
from launcher.doctor.finding import Check, CheckFinding, HostCheck, Seen
from launcher.doctor.probe import Reports, Say

#: Checks of run.root that must pass before ranks are started: their reports go there.
_PLACE = "run.root"


def each_host(check: HostCheck) -> Check:
    """A check of all hosts; findings that read the same become one, with all their hosts."""

    def of_all(seen: Seen) -> Iterator[CheckFinding]:
        found: dict[tuple[str, str, str, str], list[str]] = {}
        first: dict[tuple[str, str, str, str], CheckFinding] = {}
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


def judge(seen: Seen) -> list[CheckFinding]:
    """Every finding of every check."""
    return [finding for check in CHECKS for finding in check(seen)]


def diagnose(
    config: Config, *, whole_job: bool, timeout_s: float, keep: bool, say: Say
) -> list[CheckFinding]:
    """All findings; `whole_job` starts the ranks that `launch` and `cluster` ask for, else one.

    Raises `ConfigError` if ranks cannot be started so.
    """
    if not whole_job:
        config.launch = LaunchConfig(processes=1)
    probe.check(config)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(services.ask, config)
        say("looking at this host")
        here = facts(config)
        place = here["folders"][_PLACE]
        reports: Reports = {}
        if place["error"]:
            trouble = f"run.root cannot be written: {place['error']}"
        else:
            reports, trouble = probe.probe(config, timeout_s=timeout_s, keep=keep, say=say)
        heard = asked.result()
    world = create.planned_world(config)
    seen = Seen(config, here, heard, asked=world, ranks=reports, trouble=trouble)
    return judge(seen)


def facts(config: Config) -> dict[str, Any]:
    """Facts of this host, in the form that ranks report theirs."""
    packages = [requirement.name for requirement in versions.requirements()]
    found = host_machine.facts(packages, machine.COMPILERS)
    found["folders"] = host_storage.facts(host_storage.folders(config.run.root, config.data.cache))
    return found
