"""Starts trials and sees them end: so many at a time on this machine, an array a batch on Slurm."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from launcher.config import compose, variants
from launcher.config.schema import Config
from launcher.errors import ExitCode, LauncherError, StorageError
from launcher.jobs import scheduled, start
from launcher.jobs.logs import backend_of
from launcher.jobs.slots import Slots, free_slot
from launcher.launch import slurm, slurm_ask
from launcher.launch.local import START_TIMEOUT_S
from launcher.launch.outcome import settled
from launcher.launch.patience import BusyError, patiently
from launcher.launch.spec import JobState, LaunchPlan, job_file
from launcher.rundir import State, read_json
from launcher.sweeps.folder import SweepDir, Trial

#: Back ends whose jobs wait in a queue of their own: all trials of a batch go there at once.
QUEUED = ("slurm",)
#: Seconds between two questions about queued jobs; fewer when a trial has said that it ended.
_ASK_S = 15.0
_ENDING_S = 2.0


class Pool:
    """Trials that run now. Each of this machine's has a slot: GPUs and threads of its own."""

    def __init__(
        self, sweep: SweepDir, config: Config, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """`config` is that of any trial. `ConfigError` if so many do not fit on the GPUs.

        Once `is_stopped`, a queue that takes nothing is waited for no longer.
        """
        self.is_stopped = is_stopped
        self.sweep = sweep
        self.backend_name = config.launch.name
        self.parallel = config.launch.max_parallel
        self.running: dict[int, Trial] = {}
        #: Configs of trials just made; those of others are read.
        self.configs: dict[int, Config] = {}
        self._slots: dict[int, int] = {}
        self._asked = time.monotonic()
        self._missing: dict[int, float] = {}
        self._places = None
        if not self.is_queued:
            self._places = Slots(config, self.parallel or 1, where="launch.max_parallel")

    @property
    def is_queued(self) -> bool:
        """Whether trials wait in the back end's queue, not in ours."""
        return self.backend_name in QUEUED

    @property
    def world_size(self) -> int | None:
        """Ranks of a trial that gets a share of this machine's GPUs; None where the config says."""
        return self._places.world_size if self._places else None

    @property
    def room(self) -> int | None:
        """How many more trials can be started now; None: any number, the queue sees to the rest."""
        if self.is_queued:
            return None
        return max(0, (self.parallel or 1) - len(self.running))

    def gpus_of(self, slot: int) -> list[str]:
        """The GPUs of a slot's trial, as CUDA_VISIBLE_DEVICES names them."""
        return self._places.gpus_of(slot) if self._places else []

    def adopt(self, trial: Trial) -> bool:
        """Take over a trial that an earlier controller has started; False if none runs."""
        attempt = trial.run.status().attempt
        backend = backend_of(trial.run, attempt) if attempt else None
        if backend is None:
            return False
        submitted = job_file(trial.run, attempt)
        # A supervisor whose controller was killed may still be starting.
        end = submitted.stat().st_mtime + START_TIMEOUT_S
        while backend.status(trial.run, attempt) is JobState.gone:
            if settled(trial.run.status()) or time.time() > end or self.is_queued:
                return False
            time.sleep(0.1)
        self._occupy(trial, _slot_of(read_json(submitted), self._places))
        return True

    def start(self, trials: Sequence[Trial]) -> None:
        """Launch trials, at most `room` of them; a trial that cannot be is written as failed."""
        if not self.is_queued:
            for trial in trials:
                self._start_here(trial)
            return
        arrays: dict[str, list[tuple[Trial, LaunchPlan]]] = {}
        for trial in trials:
            plan = self._plan(trial, None)
            if plan is not None:
                arrays.setdefault(_demands(plan), []).append((trial, plan))
        for array in arrays.values():
            self._submit([trial for trial, _ in array], [plan for _, plan in array])

    def ended(self) -> list[Trial]:
        """Trials that have ended since the last call; their slots are free again."""
        trials = list(self.running.values())
        if self.is_queued:
            done = self._left_queue(trials)
        else:
            done = [trial for trial in trials if _is_gone(trial)]
        for trial in done:
            del self.running[trial.number]
            self._slots.pop(trial.number, None)
        return done

    def cancel(self, trial: Trial, *, now: bool) -> None:
        """Ask a trial to end; returns at once."""
        attempt = trial.run.status().attempt
        backend = backend_of(trial.run, attempt)
        if backend is not None:
            backend.cancel(trial.run, attempt, now=now)

    def _submit(self, trials: Sequence[Trial], plans: Sequence[LaunchPlan]) -> None:
        """One array, with one sbatch."""
        backend = variants.LAUNCHERS.load(self.backend_name)()
        number = sum(1 for _ in self.sweep.path.glob("array-*")) + 1
        folder = self.sweep.path / f"array-{number:04d}"

        def submit() -> str:
            job: str = backend.submit_many(plans, folder, max_parallel=self.parallel)
            return job

        try:
            patiently(submit, is_stopped=self.is_stopped)
        except LauncherError as error:
            # Not the trials' fault, and perhaps another day goes better: they stay to be submitted.
            for trial, plan in zip(trials, plans, strict=True):
                start.note_not_submitted(trial.run, plan.attempt, error)
            raise
        for trial in trials:
            self._occupy(trial, None)

    def _start_here(self, trial: Trial) -> None:
        slot = free_slot([*self._slots.values()], self.parallel or 1)
        plan = self._plan(trial, slot)
        if plan is None:
            return
        try:
            backend = variants.LAUNCHERS.load(self.backend_name)()
            # Not attached: trials outlive a controller that is killed, and the next adopts them.
            patiently(lambda: backend.submit(plan, attached=False), is_stopped=self.is_stopped)
        except (BusyError, StorageError) as error:
            # A machine that is too busy, or a full disk, is no fault of the trial's.
            start.note_not_submitted(trial.run, plan.attempt, error)
            raise
        except LauncherError as error:
            _fail(trial, error)
            return
        self._occupy(trial, slot)

    def _plan(self, trial: Trial, slot: int | None) -> LaunchPlan | None:
        """The launch plan of the trial's next attempt, or None: the trial has failed."""
        try:
            made = self.configs.get(trial.number)
            # `submit_many` makes the folder of a first attempt; nobody else works on the trial.
            attempt = 1 if made and self.is_queued else start.begin(trial.run)
            config = made or compose.load(trial.run.config)
            spec = start.spec(trial.run, attempt, config)
            if self._places and slot is not None:
                spec = self._places.fitted(spec, config, slot)
            plan: LaunchPlan = variants.LAUNCHERS.load(self.backend_name)().plan(spec)
        except LauncherError as error:
            _fail(trial, error)
            return None
        return plan

    def _occupy(self, trial: Trial, slot: int | None) -> None:
        self.running[trial.number] = trial
        self.configs.pop(trial.number, None)
        if slot is not None:
            self._slots[trial.number] = slot
        elif not self.is_queued:
            taken = self._slots.values()
            self._slots[trial.number] = next(n for n in range(len(taken) + 1) if n not in taken)

    def _left_queue(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials whose jobs are gone, by one question for all of them, and not often."""
        states = {trial.number: trial.run.status() for trial in trials}
        wait_s = _ENDING_S if any(map(settled, states.values())) else _ASK_S
        if time.monotonic() < self._asked + wait_s:
            return []
        self._asked = time.monotonic()
        jobs = {t.number: slurm.job_id(t.run, states[t.number].attempt) or "" for t in trials}
        try:
            known = slurm_ask.jobs([job for job in jobs.values() if job])
        except BusyError:
            return []
        lasting = {job for job, found in known.items() if found.state is not JobState.gone}
        done = [
            trial
            for trial in trials
            if jobs[trial.number] not in lasting
            and not self._may_be_known_later(trial, jobs, known)
        ]
        for trial in done:
            status, job = trial.run.status(), jobs[trial.number]
            if not settled(status):
                seen = scheduled.settle(trial.run.path, status, job, known.get(job))
                trial.run.set_status(seen.state, reason=seen.reason, exit_code=seen.exit_code)
        return done

    def _may_be_known_later(
        self, trial: Trial, jobs: Mapping[int, str], known: Mapping[str, object]
    ) -> bool:
        """Whether a trial without a result is missing from Slurm's answer only lately."""
        if jobs[trial.number] in known or settled(trial.run.status()):
            self._missing.pop(trial.number, None)
            return False
        since = self._missing.setdefault(trial.number, time.monotonic())
        return time.monotonic() - since < slurm.MISSING_S


def _is_gone(trial: Trial) -> bool:
    attempt = trial.run.status().attempt
    backend = backend_of(trial.run, attempt)
    if backend is None or backend.status(trial.run, attempt) is not JobState.gone:
        return False
    if not settled(trial.run.status()):
        _lost(trial)
    return True


def _demands(plan: LaunchPlan) -> str:
    """What a trial asks of the queue besides its own run: the trials of an array ask the same."""
    own = ("run", "name", "attempt")
    return repr(sorted((key, repr(v)) for key, v in plan.context.items() if key not in own))


def _slot_of(job: object, places: Slots | None) -> int | None:
    """The slot whose GPUs a submitted job was given."""
    environment = job.get("environment", {}) if isinstance(job, dict) else {}
    first = str(environment.get("CUDA_VISIBLE_DEVICES", "")).partition(",")[0]
    return places.slot_of(first) if places else None


def _fail(trial: Trial, error: Exception) -> None:
    code = int(getattr(error, "exit_code", ExitCode.internal))
    trial.run.set_status(State.failed, reason=str(error), exit_code=code)


def _lost(trial: Trial) -> None:
    reason = "lost: the processes of the run are gone without a result"
    trial.run.set_status(State.failed, reason=reason, exit_code=int(ExitCode.internal))
