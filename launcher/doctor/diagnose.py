"""Look at everything, then judge it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launcher.config import create
from launcher.config.schema import Config
from launcher.config.schema.launch import LaunchConfig
from launcher.doctor import checks, job, machine, services, versions
from launcher.doctor.finding import Finding, Seen
from launcher.doctor.job import Reports, Say
from launcher.host import machine as host_machine
from launcher.host import storage

#: Checks of run.root that must pass before ranks are started: their reports go there.
_PLACE = "run.root"


def diagnose(
    config: Config, *, whole_job: bool, timeout_s: float, keep: bool, say: Say
) -> list[Finding]:
    """All findings; `whole_job` starts the ranks that `launch` and `cluster` ask for, else one.

    Raises `ConfigError` if ranks cannot be started so.
    """
    if not whole_job:
        config.launch = LaunchConfig(processes=1)
    job.check(config)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(services.ask, config)
        say("looking at this host")
        here = facts(config)
        place = here["folders"][_PLACE]
        reports: Reports = {}
        if place["error"]:
            trouble = f"run.root cannot be written: {place['error']}"
        else:
            reports, trouble = job.probe(config, timeout_s=timeout_s, keep=keep, say=say)
        heard = asked.result()
    world = create.planned_world(config)
    seen = Seen(config, here, heard, asked=world, ranks=reports, trouble=trouble)
    return checks.judge(seen)


def facts(config: Config) -> dict[str, Any]:
    """Facts of this host, in the form that ranks report theirs."""
    packages = [requirement.name for requirement in versions.requirements()]
    found = host_machine.facts(packages, machine.COMPILERS)
    found["folders"] = storage.facts(storage.folders(config.run.root, config.data.cache))
    return found
