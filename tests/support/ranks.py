"""Run a script on several gloo ranks of this machine, as torchrun would."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import leaks, zygote

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """How the ranks ended: torchrun's exit code, and stdout and stderr of all of them together."""

    exit_code: int
    output: str


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child: this checkout and tests/ importable, one thread, no GPU."""
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""), str(zygote.WARM)]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        **changes,
    }


def run_ranks(
    script: Path | str,
    *arguments: str,
    ranks: int = 2,
    timeout_s: float = 120,
    exit_code: int | None = 0,
    environ: dict[str, str] | None = None,
) -> Finished:
    """Run a Python file, or a module named by `script="-m package.module"`, on `ranks` gloo ranks.

    Raises `AssertionError` with the whole output if the exit code is another than `exit_code`
    (None: any will do) or the time is over. No process survives the call.
    """
    target = script.split() if isinstance(script, str) else [str(script)]
    # --standalone lets the kernel choose the port, so that tests side by side do not collide.
    # By address: a machine's own name need not be one that it can be reached by.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks), *target, *arguments]
    before = leaks.pids()
    process = subprocess.Popen(
        command,
        env=environment(**(environ or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # The workers are in sessions of their own: killing the agent's group would miss them.
        leaks.kill(list(leaks.processes(before)))
        output, _ = process.communicate()
        raise AssertionError(f"not finished after {timeout_s} s:\n{output}") from None
    finally:
        leaks.kill(list(leaks.processes(before)))
    if exit_code is not None and process.returncode != exit_code:
        raise AssertionError(f"exit code {process.returncode}, not {exit_code}:\n{output}")
    return Finished(process.returncode, output)
