"""`--dry-run` of a sweep: the trials, and what would be submitted for the first of them."""

from __future__ import annotations

from launcher.config.compose import compose
from launcher.jobs import start
from launcher.rundir import RunDir
from launcher.sweeps import space
from launcher.sweeps.folder import Request, SweepDir
from launcher.sweeps.making import Maker
from launcher.sweeps.pool import Pool
from launcher.sweeps.table import pasted


def rehearsal(sweep: SweepDir, request: Request) -> str:
    """Text for people; nothing is made or started."""
    found = space.read(request.words, compose.Sources(request.config_dirs).options)
    if request.kind == "grid":
        trials = space.grid(found)
    elif request.kind == "random":
        trials = space.draws(found, request.options["trials"], request.options["seed"])
    else:
        trials = []
    first = next(iter(trials), found.corners(2)[0])
    config, _ = Maker(sweep, request).composed(first)
    pool = Pool(sweep, config)
    config, plan = Maker(sweep, request, pool.world_size).composed(first)
    path = sweep.trial_path(0)
    config.run.root, config.run.name = str(path.parent), path.name
    lines = [start.rehearsed(RunDir(path), config, plan.world_size, ask=False).describe(), ""]
    lines += [f"# {sweep.trial_path(n).name}: {pasted(words)}" for n, words in enumerate(trials)]
    if not trials:
        shown = ", ".join(
            f"{dimension.key} in {dimension.text}" for dimension in found.swept.values()
        )
        lines.append(
            f"# {request.planned or 'as many as it asks for'} trials of {request.kind}: {shown}"
        )
    return "\n".join(lines)
