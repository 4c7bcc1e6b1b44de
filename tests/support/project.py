"""A user's folder with a small model and data, and the real commands run in it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from support.chats import chat
from support.models import make_llama
from support.ranks import environment

BIN = Path(sys.executable).parent
LAUNCHER = (sys.executable, "-m", "launcher.cli")
#: One rank, without supervisor and agent.
DIRECT = (sys.executable, "-m", "launcher.train")
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "launcher.train"),
)
#: A port that the kernel does not give away by itself, so that tests side by side do not collide.
DEEPSPEED = (
    *(str(BIN / "deepspeed"), "--num_accelerators", "2"),
    *("--master_port", str(20000 + os.getpid() % 9000), "--module", "launcher.train"),
)
TIMEOUT_S = 180

#: A run that only trains; one thread a rank, so that sums are formed in one order.
WORDS = (
    "data.train=data.jsonl",
    "data.validation_share=0",
    "data.workers=1",
    "data.cache=cache",
    "data.max_length=128",
    "eval=none",
    "export.at_end=false",
    "train.log_every_steps=1",
    "train.threads=1",
)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str


class Started:
    """A command that runs; stdout and stderr go to one file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition that must come true while the command runs."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < end, f"waited in vain for {what}:\n{self.output}"
            time.sleep(0.01)

    def end(self) -> Done:
        """Wait for its end; it is killed if that takes too long."""
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not finished after {TIMEOUT_S} s:\n{self.output}") from None
        return Done(code, self.output)


class Project:
    """A folder in which commands are run, with `model/` and `data.jsonl`."""

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.folder = folder
        self.model = model or make_llama(folder / "model")
        self._started = 0

    def write_data(self, records: Iterable[dict[str, Any]], name: str = "data.jsonl") -> None:
        """One JSON line a record."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (self.folder / name).write_text(text)

    def start(
        self, command: Iterable[str], *words: str, address_space: int | None = None, **environ: str
    ) -> Started:
        """Start a command in this folder; `address_space` bounds each process, in bytes."""

        def limit() -> None:
            if address_space:
                resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

        self._started += 1
        log = self.folder / f"command-{self._started}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*command, *words],
                cwd=self.folder,
                env=environment(**environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=limit,
            )
        return Started(process, log)

    def run(self, command: Iterable[str], *words: str, **options: Any) -> Done:
        """Run a command to its end."""
        return self.start(command, *words, **options).end()

    def trained(
        self, name: str, *more: str, command: Iterable[str] = (*LAUNCHER, "train")
    ) -> tuple[RunDir, str]:
        """A run of this name that has come to its end, and what it has said."""
        done = self.run(command, *self.words(name, *more))
        assert done.code == ExitCode.ok, done.output
        return self.folder_of(name), done.output

    def words(self, name: str, *more: str) -> tuple[str, ...]:
        """Overrides of a run of this name."""
        return (f"model.name={self.model}", *WORDS, f"run.name={name}", *more)

    def folder_of(self, name: str, root: str = "runs") -> RunDir:
        """The run folder of this name."""
        return RunDir(self.folder / root / name)


def conversations(count: int) -> list[dict[str, Any]]:
    """Distinct chats of two turns."""
    return [
        chat(f"What is {n} + {n}?", f"It is {2 * n}." + " Yes." * (n % 7)) for n in range(count)
    ]


def checkpoint_files(run: RunDir) -> dict[int, dict[str, str]]:
    """Step -> file name -> hash, of the checkpoints with a manifest."""
    found = {}
    for manifest in sorted(run.checkpoints.glob("step-*/manifest.json")):
        content = read_json(manifest)
        if content:
            files = {name: entry["blake2b"] for name, entry in content["files"].items()}
            found[content["step"]] = files
    return found


def losses(run: RunDir, name: str = "loss") -> dict[int, Any]:
    """Step -> training loss, or another metric; a step that stands twice in metrics.jsonl fails."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert len(steps) == len(set(steps))
    return {line["step"]: line[name] for line in lines if line["kind"] == "train"}


def curve(run: RunDir) -> list[float]:
    """Training losses, in the order of steps."""
    found = losses(run)
    return [found[step] for step in sorted(found)]


def rank_pid(run: RunDir, rank: int) -> int:
    """Process id of a rank, from its heartbeat."""
    return int(read_json(run.heartbeat(rank))["pid"])


def kill_rank(run: RunDir, rank: int, number: signal.Signals) -> None:
    """Send a signal to one rank."""
    os.kill(rank_pid(run, rank), number)


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone, or going while it is read
        return False
