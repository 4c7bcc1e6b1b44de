"""Slurm that refuses, is away, or loses its answer, played by scripts in its commands' place.

`sbatch` keeps what it takes in the file `queue`, which `squeue` shows and `scancel` empties. What
it does at each call stands in the file `script`, line by line.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config import create
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State
from launcher.launch import retry
from launcher.launch.queue import FullError, queue_job
from launcher.launch.retry import BusyError, patiently
from launcher.launch.slurm import backend as slurm
from launcher.launch.slurm import batch, commands
from launcher.launch.slurm.text import described
from launcher.launch.spec import AttemptState
from launcher.runs import scheduled, start, status
from launcher.sweeps import preparation
from launcher.sweeps.controller import SweepController
from launcher.sweeps.folder import SweepDir

WORDS = ("model=tiny", "data.train=x.jsonl", "batch.sequences=4", "launch=slurm")
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
AWAY = "sbatch: error: Unable to contact slurm controller (connect failure)"
LIMIT = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit|sbatch: error: Batch job submission failed: Job"
    " violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)

SBATCH = """
cd "$(dirname "$0")"
folder=$OLDPWD; script=$folder/${!#}; echo "$*" >>calls
line=$(head -1 script); sed -i 1d script
take() { echo "$(( $(wc -l <taken) + 11 ))|$script" | tee -a taken >>queue; }
case $line in
  lost*) take; line=${line#lost } ;;
  taken|"") take; tail -1 taken | cut -d"|" -f1; exit 0 ;;
esac
[ "$line" = dies ] && kill -9 $$
echo "$line" | tr "|" "\\n" >&2
exit 1
"""
SQUEUE = """
cd "$(dirname "$0")"
[ -e down ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
case $* in
  *%F*) cat queue ;;
  *) while IFS="|" read -r job script; do
       for task in "" _0 _1; do echo "$job$task|PENDING|Priority"; done
     done <queue ;;
esac
"""
SCANCEL = """
cd "$(dirname "$0")"
for job; do sed -i "/^${job%_*}|/d" queue; echo "$job" >>cancelled; done
"""


class Slurm:
    """The scripts' folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("queue", "taken", "script", "cancelled", "calls"):
            (folder / name).touch()
        scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "srun": "exit 9"}
        scripts |= {"sacct": "", "sinfo": ""}
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}")
            (folder / name).chmod(0o755)

    def says(self, *lines: str) -> None:
        """What sbatch does at each call: `taken`, `lost WORDS` (taken, then WORDS), or WORDS."""
        (self.folder / "script").write_text("".join(f"{line}\n" for line in lines))

    def is_down(self, value: bool) -> None:
        """Whether squeue reaches its controller."""
        if value:
            (self.folder / "down").touch()
        else:
            (self.folder / "down").unlink()

    def of(self, name: str) -> list[str]:
        """Ids in one of the files."""
        lines = (self.folder / name).read_text().splitlines()
        return [line.partition("|")[0] for line in lines]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    # No test is to wait: the waits are what they are, but short.
    monkeypatch.setattr(retry, "_FIRST_S", 0.01)
    monkeypatch.setattr(retry, "_MOST_S", 0.01)
    return Slurm(folder)


@pytest.fixture
def make(fake: Slurm, tmp_path: Path) -> Callable[..., tuple[RunDir, int]]:
    def make(*words: str) -> tuple[RunDir, int]:
        run = create.create([*WORDS, f"run.root={tmp_path}/runs", "run.name=r", *words])
        return run, start.begin(run)

    return make


@pytest.mark.parametrize("trouble", [AWAY, LIMIT, "dies", "sbatch: error: try again later"])
def test_a_refusal_that_passes_is_waited_for(fake, make, capsys, trouble):
    run, attempt = make()
    fake.says(trouble, trouble, "taken")
    start.submit(run, attempt, attached=False)
    assert fake.of("taken") == ["11"]
    assert queue_job(run, attempt) == "11"
    assert capsys.readouterr().err.count("tried again in") == 2


@pytest.mark.parametrize("trouble", [TIMED_OUT, "dies", "sbatch: error: what nobody has heard of"])
@pytest.mark.parametrize("more", [(), ("launch.prepare_job=true",)])
def test_a_lost_answer_is_recovered_and_not_repeated(fake, make, trouble, more):
    run, attempt = make(*more)
    fake.says(*["taken"] * len(more), f"lost {trouble}")
    start.submit(run, attempt, attached=False)
    assert len(fake.of("taken")) == 1 + len(more)
    assert queue_job(run, attempt) == fake.of("taken")[-1]
    assert fake.of("cancelled") == []


def test_what_stays_refused_is_told_and_can_be_tried_again(fake, make):
    run, attempt = make()
    fake.says(*[LIMIT] * 50)
    with pytest.raises(BusyError, match="QOSMaxSubmitJobPerUserLimit") as error:
        start.submit(run, attempt, attached=False, patience_s=0.2)
    assert error.value.exit_code == ExitCode.preempted
    assert run.command("resume") in error.value.problems[0].hint
    assert status.observed_run(run).state is State.preempted
    assert "not submitted: sbatch: error: QOSMax" in run.status().reason
    fake.says("taken")
    attempt = start.begin(run)
    start.submit(run, attempt, attached=False)
    assert queue_job(run, attempt) == "11"


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: invalid partition specified: x",
        "sbatch: error: QOSMaxWallDurationPerJobLimit|sbatch: error: Batch job submission failed:"
        " Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ],
)
def test_what_will_always_be_refused_is_told_at_once(fake, make, capsys, words):
    run, attempt = make()
    fake.says(words)
    with pytest.raises(ConfigError, match="Slurm refuses the job"):
        start.submit(run, attempt, attached=False)
    assert "tried again" not in capsys.readouterr().err


def test_a_job_that_nobody_heard_of_can_be_cancelled(fake, make):
    run, attempt = make()
    fake.says(f"lost {TIMED_OUT}")
    fake.is_down(True)
    with pytest.raises(BusyError):
        start.submit(run, attempt, attached=False, patience_s=0.2)
    # Meanwhile nothing is claimed.
    assert status.observed_run(run).state is State.unknown
    fake.is_down(False)
    assert queue_job(run, attempt) is None
    backend = slurm.SlurmBackend()
    backend.cancel(run, attempt, now=True)
    assert fake.of("cancelled") == ["11"]
    assert fake.of("queue") == []


def test_a_job_whose_answer_was_lost_is_followed(fake, make):
    run, attempt = make()
    fake.says(f"lost {TIMED_OUT}")
    fake.is_down(True)
    with pytest.raises(BusyError):
        start.submit(run, attempt, attached=False, patience_s=0.2)
    fake.is_down(False)
    found = status.observed_run(run)
    assert (found.state, queue_job(run, attempt)) == (State.queued, "11")


def test_a_job_says_itself_which_one_it_is(fake, make, monkeypatch):
    """Even where squeue no longer knows: the batch script notes its own id."""
    run, attempt = make()
    fake.says(f"lost {TIMED_OUT}")
    fake.is_down(True)
    with pytest.raises(BusyError):
        start.submit(run, attempt, attached=False, patience_s=0.1)
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    assert batch.main(["begin", str(run)]) == ExitCode.ok
    assert queue_job(run, attempt) == "11"


@pytest.mark.parametrize("lines", [(AWAY, "taken"), (f"lost {TIMED_OUT}",), ("lost dies",)])
@pytest.mark.slow
def test_a_sweep_is_submitted_in_the_end(fake, lines, tmp_path):
    fake.says(*lines)
    assert main(["submit", "-m", *WORDS, "seed=1,2", "run.name=s"]) == ExitCode.ok
    assert fake.of("taken") == ["11"]
    sweep = SweepDir(tmp_path / "runs" / "s")
    ids = [queue_job(trial.run, 1) for trial in sweep.trials()]
    assert ids == ["11_0", "11_1"]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(AWAY, ExitCode.preempted), (LIMIT, 75), ("sbatch: error: Job array too large", 2)],
)
@pytest.mark.slow
def test_a_refused_sweep_is_not_lost(fake, monkeypatch, capsys, trouble, code, tmp_path):
    fake.says(*[trouble] * 200)
    monkeypatch.setattr(patiently, "__defaults__", (0.1,))
    command = ["submit", "-m", *WORDS, "seed=1,2", "run.name=s"]
    assert main(command) == code
    assert "launcher sweep resume" in capsys.readouterr().err
    sweep = SweepDir(tmp_path / "runs" / "s")
    assert not any(found.state.is_final for _, found in sweep.states())
    fake.says("taken")
    assert main(command) == ExitCode.ok
    assert fake.of("taken") == ["11"]
    assert {found.state for _, found in sweep.states()} == {State.queued}


ARRAY = "sbatch: error: Batch job submission failed: Invalid job array specification"


@pytest.mark.slow
def test_a_sweep_of_more_trials_than_an_array_may_have_is_several(fake, tmp_path):
    fake.says(ARRAY, ARRAY, "taken", "taken", "taken")
    command = ["submit", "-m", *WORDS, "seed=1,2,3,4,5", "run.name=s", "launch.max_parallel=2"]
    assert main(command) == ExitCode.ok
    sweep = SweepDir(tmp_path / "runs" / "s")
    ids = [queue_job(trial.run, 1) for trial in sweep.trials()]
    assert ids == ["11_0", "11_1", "12_0", "12_1", "13_0"]
    # One after the other: each would run two at a time for itself.
    calls = (fake.folder / "calls").read_text().splitlines()[-3:]
    turns = [re.findall(r"--dependency=(\S+)", call) for call in calls]
    assert turns == [[], ["afterany:11"], ["afterany:11:12"]]


@pytest.mark.slow
def test_trials_for_which_there_is_no_room_follow_when_others_have_ended(fake, tmp_path):
    fake.says(LIMIT, "taken", LIMIT)
    sweep, request = preparation.request([*WORDS, "seed=1,2,3", "run.name=s"], [])
    preparation.make(sweep, request)
    controller = SweepController(sweep, request)
    trials = [controller.claim([f"seed={seed}"]) for seed in (1, 2, 3)]
    left = controller.launch(trials)
    assert [trial.number for trial in left] == [2]
    assert fake.of("taken") == ["11"]
    status = left[0].run.status()
    assert (status.state, status.exit_code) == (State.preempted, ExitCode.preempted)
    assert controller.pool.room == 0
    for trial in trials[:2]:
        trial.run.set_status(State.succeeded, exit_code=0)
    (fake.folder / "queue").write_text("")
    controller.pool._asked = controller.pool._closed_until = -1e9
    assert controller.pool.ended() == trials[:2]
    assert controller.pool.room is None
    assert controller.launch(left) == []
    assert queue_job(left[0].run, 1) == "12_0"
    assert left[0].run.attempts() == [1]


@pytest.mark.slow
def test_a_sweep_of_which_only_a_part_is_taken_says_so(fake, capsys, tmp_path):
    fake.says(LIMIT, "taken", LIMIT)
    command = ["submit", "-m", *WORDS, "seed=1,2,3", "run.name=s"]
    assert main(command) == ExitCode.preempted
    assert "not submitted: `launcher sweep resume s`" in capsys.readouterr().err
    assert fake.of("taken") == ["11"]
    assert main(command) == ExitCode.ok
    sweep = SweepDir(tmp_path / "runs" / "s")
    latest = [queue_job(t.run, t.run.status().attempt) for t in sweep.trials()]
    assert latest == ["11_0", "11_1", "12_0"]


def test_sbatch_that_waits_for_room_by_itself_is_told_from_one_that_hangs(fake, monkeypatch):
    monkeypatch.setattr(commands, "_TIMEOUT_S", 0.5)
    said = "Slurm temporarily unable to accept job, sleeping and retrying"
    (fake.folder / "sbatch").write_text(f"#!/bin/bash\necho '{said}' >&2; exec sleep 9")
    with pytest.raises(FullError, match="temporarily unable"):
        commands.run("sbatch", "x")


@pytest.mark.slow
def test_a_sweep_whose_answer_was_lost_is_cancelled_whole(fake, monkeypatch, tmp_path):
    fake.says(f"lost {TIMED_OUT}")
    fake.is_down(True)
    monkeypatch.setattr(patiently, "__defaults__", (0.1,))
    assert main(["submit", "-m", *WORDS, "seed=1,2", "run.name=s"]) == ExitCode.preempted
    fake.is_down(False)
    assert main(["sweep", "cancel", "s"]) == ExitCode.ok
    assert fake.of("queue") == []
    states = SweepDir(tmp_path / "runs" / "s").states()
    assert {found.state for _, found in states} == {State.cancelled}


def test_a_controller_that_is_away_makes_no_job_lost(fake, make):
    run, attempt = make()
    start.submit(run, attempt, attached=False)
    backend = slurm.SlurmBackend()
    fake.is_down(True)
    assert backend.status(run, attempt) is AttemptState.unknown
    assert status.observed_run(run).state is State.unknown


def test_a_job_missing_from_one_answer_is_not_lost(fake, make, monkeypatch):
    run, attempt = make()
    start.submit(run, attempt, attached=False)
    (fake.folder / "queue").write_text("")
    backend = slurm.SlurmBackend()
    assert backend.status(run, attempt) is AttemptState.unknown
    monkeypatch.setattr(slurm, "MISSING_S", 0.0)
    monkeypatch.setattr(slurm, "_POLL_S", 0.0)
    assert backend.status(run, attempt) is AttemptState.gone


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("bash: module: command not found\n", "module: command not found"),
        (None, "its nodes may not see"),
    ],
)
def test_why_the_ranks_never_began_is_told(make, log, said):
    run, attempt = make()
    start.submit(run, attempt, attached=False)
    own = slurm.SlurmBackend().log(run, attempt)
    if log is not None:
        own.write_text(log)
    job = described("11", "FAILED")
    found = scheduled.settle(slurm.SlurmBackend(), run.path, run.status(), "11", job)
    assert found.state is State.failed
    assert said in found.reason
    assert str(own.parent) in found.reason
    assert own in slurm.SlurmBackend().logs(run, attempt)


SETUPS = {
    "set -e": ["set -e"],
    "set -u": ["set -u"],
    "cd": ["cd /"],
    "variables": ["run=x attempt=y code=1"],
    "trap": ["trap false TERM; set -euo pipefail"],
}


@pytest.mark.parametrize("lines", SETUPS.values(), ids=list(SETUPS))
def test_setup_lines_do_not_reach_the_rest_of_the_script(make, tmp_path, lines):
    run, attempt = make(f"cluster.setup={[*lines, 'export MINE=kept']}".replace("'", '"'))
    start.submit(run, attempt, attached=False)
    done = _run(run, attempt, tmp_path)
    # What follows the ranks, which fail, still happens.
    assert done.stdout.splitlines()[-1] == f"end {run} {attempt} 9 kept {Path.cwd()}", done


def test_what_a_setup_wants_done_at_the_end_of_the_job_is_done_once(make, tmp_path):
    run, attempt = make("""cluster.setup=["export MINE=kept; trap 'echo bye $MINE' EXIT"]""")
    start.submit(run, attempt, attached=False)
    done = _run(run, attempt, tmp_path)
    assert done.stdout.splitlines()[-2:] == [f"end {run} {attempt} 9 kept {Path.cwd()}", "bye kept"]
    assert done.stdout.count("bye") == 1
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("exit 4", "has ended the job at: exit 4"),
        ("false", "exit code 1 of cluster.setup: false"),
        ("set -e; false", "has ended the job at: false"),
        ("set -u; echo $NOWHERE", "NOWHERE: unbound variable"),
        ("source nowhere.sh", "nowhere.sh: No such file"),
    ],
)
def test_a_setup_line_that_fails_is_named(make, tmp_path, line, said):
    run, attempt = make(f'cluster.setup=["{line}"]')
    start.submit(run, attempt, attached=False)
    assert said in _run(run, attempt, tmp_path).stderr


def _run(run: RunDir, attempt: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """The batch script, with a stand-in for `batch` that says what it was called with."""
    stand_in = folder / "python"
    stand_in.write_text(
        '#!/bin/bash\ncase $3 in\nbegin) echo 1 ;;\nend) echo "${@:3}" "$MINE" "$PWD" ;;\nesac\n'
    )
    stand_in.chmod(0o755)
    script = read_json(run.attempt(attempt) / "job.json")["script"]
    python = next(line for line in script.splitlines() if line.startswith("slurm_job=("))
    script = script.replace(python, f"slurm_job=({stand_in} -m launcher.launch.slurm.batch)")
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd="/tmp")


def test_a_first_try_that_takes_all_of_the_time_has_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tries = []

    def act() -> str:
        tries.append(1)
        time.sleep(0.05)
        if len(tries) == 1:
            raise BusyError("slow")
        return "done"

    assert patiently(act, 0.01) == "done"
    assert "waiting: slow" in capsys.readouterr().err
    tries.clear()
    with pytest.raises(BusyError):  # who is not patient at all is not made to wait
        patiently(act, 0.0)


def test_the_health_of_slurm_is_told(fake, monkeypatch):
    def says(line: str, code: int) -> None:
        (fake.folder / "scontrol").write_text(f"#!/bin/sh\necho '{line}'; exit {code}\n")
        (fake.folder / "scontrol").chmod(0o755)

    says("Slurmctld(primary) at c1 is UP", 0)
    up = slurm.SlurmBackend().health()
    assert (up.is_here, up.found, up.hint) == (True, "Slurmctld(primary) at c1 is UP", "")
    says("Slurmctld(primary) at c1 is DOWN", 1)
    down = slurm.SlurmBackend().health()
    assert "does not answer: Slurmctld(primary) at c1 is DOWN" in down.found
    assert "SLURM_CONF" in down.hint
    monkeypatch.setenv("PATH", "/nowhere")
    gone = slurm.SlurmBackend().health()
    assert (gone.is_here, gone.found) == (False, "sbatch is not on the path")
