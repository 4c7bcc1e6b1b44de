"""Checkpoints: what a save costs the step that it falls into, random kills, what a restore takes.

    python tests/bench/saves.py cost           # the tables of docs/performance.md
    python tests/bench/saves.py kill --kills 100
    python tests/bench/saves.py restore --hidden 1024

`cost` trains a model of random weights with and without `checkpoint.background` and compares the
time from one step's line to the next where a save falls between them and where none does. `kill`
ends all ranks with SIGKILL while a checkpoint is being written, resumes, and goes on so; at the end
the weights must be those of a run that was never stopped. `restore` starts ranks that verify and
read a checkpoint of random weights which the page cache does not hold, `--turns` times for each
stage, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State
from launcher.model.checkpoint import checkpoints, newest_valid
from support import zygote

HERE = Path(__file__).resolve().parent
LAUNCHER = (sys.executable, "-m", "launcher.cli")
TEXT = ("data=text", "objective=text", "data.train=builtin:quickstart-text")
QUIET = ("data.validation_share=0", "eval=none", "export.at_end=false", "train.log_every_steps=1")


QUIETLY = subprocess.DEVNULL


def finished(command: list[str], folder: Path) -> None:
    """Run a command to its end; what it has said is shown if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")


def words(options: argparse.Namespace, name: str, *more: str) -> list[str]:
    """What is typed behind `launcher train` for the run `name`."""
    return [
        *(*TEXT, *QUIET, "model=tiny", f"model.hidden_size={options.hidden}", "model.layers=6"),
        *(f"data.max_length={options.length}", f"batch.sequences={options.sequences}"),
        *(f"launch.processes={options.ranks}", "train.threads=1", f"engine=zero{options.zero}"),
        *(f"train.steps={options.steps}", f"checkpoint.every_steps={options.every}"),
        *("checkpoint.keep_last=2", f"run.name={name}", *more),
    ]


def cost(options: argparse.Namespace, folder: Path) -> int:
    """Print a row for each way to save."""
    print("| | step | step with a save | ratio | checkpoint | written in |")
    print("|---|---|---|---|---|---|", flush=True)
    for is_behind in (False, True):
        name = "behind training" if is_behind else "training waits"
        run = RunDir(folder / "runs" / name.replace(" ", "-"))
        option = f"checkpoint.background={str(is_behind).lower()}"
        command = [*LAUNCHER, "train", *words(options, run.name, option)]
        finished(command, folder)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        at = {line["step"]: line["time"] for line in lines if line["kind"] == "train"}
        # From the line of a step to that of the next: a save comes after the line.
        took = {step: at[step + 1] - at[step] for step in at if step + 1 in at}
        del took[1]
        saving = [seconds for step, seconds in took.items() if step % options.every == 0]
        plain = [seconds for step, seconds in took.items() if step % options.every]
        one, other = statistics.median(plain), statistics.median(saving)
        last = checkpoints(run)[0].manifest
        size = sum(entry["bytes"] for entry in last["files"].values()) / 2**20
        cells = (name, f"{one:.3f} s", f"{other:.3f} s", f"{other / one:.2f}x", f"{size:.0f} MiB")
        print(f"| {' | '.join(cells)} | {last['seconds']:.2f} s |", flush=True)
    return 0


def kill(options: argparse.Namespace, folder: Path) -> int:
    """Kill and resume; exit code 1 if anything but the unfinished checkpoint was ever lost, or the
    run came to its end too early."""
    zygote.announce()
    zygote.begin()
    command = [*LAUNCHER, "train", *words(options, "whole")]
    finished(command, folder)
    run, chance, saved, done = RunDir(folder / "runs" / "killed"), random.Random(0), 0, 0
    command = [*LAUNCHER, "train", *words(options, run.name)]
    halves = 0
    while done < options.kills:
        process = subprocess.Popen(command, cwd=folder, stdout=QUIETLY, stderr=QUIETLY)
        if not _await_save(run, process):
            print(f"the run ended after {done} kills: give it more --steps")
            return 1
        time.sleep(chance.uniform(0, options.within))
        ranks = list(range(options.ranks))
        chance.shuffle(ranks)
        for rank in ranks:
            beat = read_json(run.heartbeat(rank), {})
            with contextlib.suppress(ProcessLookupError, KeyError):
                os.kill(int(beat["pid"]), signal.SIGKILL)
        process.wait()
        done += 1
        halves += any(run.checkpoints.glob(".writing-step-*"))
        damaged: list[str] = []
        newest = newest_valid(run, damaged.append)
        step = newest.step if newest else 0
        print(f"kill {done}: goes on from step {step}", flush=True)
        if step < saved or damaged:
            print(f"step {saved} was there; {damaged or 'nothing'} is damaged")
            return 1
        saved = step
        command = [*LAUNCHER, "resume", run.name]
    finished(command, folder)
    files = [
        checkpoints(RunDir(folder / "runs" / name))[-1].manifest["files"]
        for name in ("whole", "killed")
    ]
    is_same = files[0] == files[1] and run.status().state is State.succeeded
    print(
        f"{done} kills, {halves} of them with a checkpoint half written;"
        f" the last one is {'that' if is_same else 'NOT that'} of a whole run"
    )
    return 0 if is_same else 1


def restore(options: argparse.Namespace, folder: Path) -> int:
    """Print a row for each stage."""
    from support.models import make_llama

    sizes = {"hidden_size": options.hidden, "intermediate_size": 4 * options.hidden}
    make_llama(folder / "model", num_hidden_layers=6, num_attention_heads=8, **sizes)
    found: dict[int, list[dict[str, Any]]] = {}
    for turn in range(options.turns):
        for zero in options.stages:
            task = folder / f"zero{zero}.json"
            if not turn:
                task.write_text(json.dumps(_task(options, zero, folder)))
                _child(options.ranks, "save", task)
            shown = _child(options.ranks, "restore", task)
            (line,) = [line for line in shown.splitlines() if line.startswith("RESULT")]
            found.setdefault(zero, []).append(json.loads(line.removeprefix("RESULT")))
    print("| ZeRO | base | checkpoint | verified | weights | optimizer | memory: base | restore |")
    print("|---|---|---|---|---|---|---|---|")
    for zero, results in found.items():
        cells = [str(zero), _seconds(results, "base"), f"{results[0]['bytes'] / 2**20:.0f} MiB"]
        cells += [_seconds(results, name) for name in RESTORING]
        cells += [_mib(results, ("base",)), _mib(results, RESTORING)]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


RESTORING = ("verify", "weights", "optimizer")


def _task(options: argparse.Namespace, zero: int, folder: Path) -> dict[str, Any]:
    config = {
        "model": {"name": str(folder / "model")},
        "data": {"max_length": 64},
        "batch": {"sequences": options.ranks, "micro": 1},
        "engine": {"zero": zero},
        "optim": {"name": "adamw"},
    }
    return {"config": config, "run": str(folder / f"zero{zero}")}


def _child(ranks: int, part: str, task: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), str(HERE / "restore_child.py"), part, str(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    return done.stdout


def _seconds(results: list[dict[str, Any]], name: str) -> str:
    """Medians over the turns: the slowest rank by the clock, and CPU seconds of all ranks."""
    clock = [max(rank[name]["seconds"] for rank in found["ranks"]) for found in results]
    cpu = [sum(rank[name]["cpu"] for rank in found["ranks"]) for found in results]
    return f"{statistics.median(clock):.2f} s ({statistics.median(cpu):.2f})"


def _mib(results: list[dict[str, Any]], names: Iterable[str]) -> str:
    """The medians of the highest peaks of each rank: of its own memory, with pages of files."""
    cells = []
    for rank in range(len(results[0]["ranks"])):
        peaks = [
            statistics.median(
                max(found["ranks"][rank][n][kind] for n in names) for found in results
            )
            for kind in ("own", "resident")
        ]
        cells.append(f"{peaks[0] / 2**20:.0f} ({peaks[1] / 2**20:.0f})")
    return ", ".join(cells) + " MiB"


def _await_save(run: RunDir, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a checkpoint is under way; False if the run ends before."""
    before = {path.name for path in run.checkpoints.glob("*")}
    while process.poll() is None:
        now = {path.name for path in run.checkpoints.glob(".writing-step-*")}
        if now - before:
            return True
        time.sleep(0.001)
    return False


def main(argv: list[str]) -> int:
    """Run the part of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["cost", "kill", "restore"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--within", type=float, default=0.5, help="longest wait before a kill, s")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=2, choices=[0, 1, 2, 3])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="saves-"))
    try:
        return {"cost": cost, "kill": kill, "restore": restore}[options.part](options, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
