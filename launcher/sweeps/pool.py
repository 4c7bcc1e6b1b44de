"""Starts trials and sees them end: so many at a time here, an array a batch in a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from launcher.config.compose import compose
from launcher.config.schema import Config, variants
from launcher.core.errors import ExitCode, LauncherError, StorageError
from launcher.core.files import read_json
from launcher.core.rundir import State
from launcher.launch.local import START_TIMEOUT_S
from launcher.launch.outcome import settled
from launcher.launch.queue import MISSING_S, ArrayError, FullError, array_of, queue_job, queue_of
from launcher.launch.retry import BusyError, patiently
from launcher.launch.spec import AttemptState, LaunchPlan, job_file
from launcher.runs import scheduled, start
from launcher.runs.logs import backend_of
from launcher.runs.slots import Slots, free_slot
from launcher.sweeps.folder import SweepDir, Trial

#: Seconds between two questions about queued jobs; fewer when a trial has said that it ended.
_ASK_S = 15.0
_ENDING_S = 2.0
#: Seconds after which a queue without room is asked again.
_FULL_S = 15.0


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
        self._queue = queue_of(self.backend_name)
        self.parallel = config.launch.max_parallel
        self.running: dict[int, Trial] = {}
        #: Configs of trials just made; those of others are read.
        self.configs: dict[int, Config] = {}
        self._slots: dict[int, int] = {}
        self._asked = time.monotonic()
        self._missing: dict[int, float] = {}
        #: Plans of trials that the queue had no room for, and until when it is not asked again.
        self._deferred: dict[int, LaunchPlan] = {}
        self._closed_until = 0.0
        self.refusal: LauncherError | None = None
        self._places = None
        if not self.is_queued:
            self._places = Slots(config, self.parallel or 1, where="launch.max_parallel")

    @property
    def is_queued(self) -> bool:
        """Whether trials wait in the back end's queue, not in ours."""
        return self._queue is not None

    @property
    def world_size(self) -> int | None:
        """Ranks of a trial that gets a share of this machine's GPUs; None where the config says."""
        return self._places.world_size if self._places else None

    @property
    def room(self) -> int | None:
        """How many more trials can be started now; None: any number, the queue sees to the rest."""
        if time.monotonic() < self._closed_until:
            return 0
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
        # A supervisor whose controller was killed may still be starting. Of a file from the future,
        # as after a clock was put back, no more than the whole time.
        left_s = submitted.stat().st_mtime + START_TIMEOUT_S - time.time()
        end = time.monotonic() + min(START_TIMEOUT_S, left_s)
        while backend.status(trial.run, attempt) is AttemptState.gone:
            if settled(trial.run.status()) or time.monotonic() > end or self.is_queued:
                return False
            time.sleep(0.1)
        self._occupy(trial, _slot_of(read_json(submitted), self._places))
        return True

    def start(self, trials: Sequence[Trial]) -> list[Trial]:
        """Launch trials, at most `room` of them; a trial that cannot be is written as failed.

        Returns those for which there is no room now, in the queue or on a machine that is too busy
        (`refusal` says why), as long as others are there.
        """
        if not self.is_queued:
            return [trial for trial in trials if not self._start_here(trial)]
        arrays: dict[str, list[tuple[Trial, LaunchPlan]]] = {}
        for trial in trials:
            plan = self._plan(trial, None)
            if plan is not None:
                arrays.setdefault(_demands(plan), []).append((trial, plan))
        return [trial for array in arrays.values() for trial in self._submit(array)]

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

    def _submit(self, array: list[tuple[Trial, LaunchPlan]]) -> list[Trial]:
        """One array; several where the queue takes none so large.

        Returns the trials that have to wait for room.
        """
        size = most = len(array)
        while array:
            try:
                if self.is_stopped():
                    raise BusyError("stopped before all trials were submitted")
                self._submit_one(array[:size], is_small=size == 1)
            except LauncherError as error:
                is_full = isinstance(error, FullError) and not error.is_open
                if size > 1 and (is_full or isinstance(error, ArrayError)):
                    size = (size + 1) // 2
                    most = size if isinstance(error, ArrayError) else most
                    continue
                # Not the trials' fault, and perhaps another day goes better: they stay to be
                # submitted.
                for trial, plan in array:
                    start.note_not_submitted(trial.run, plan.attempt, error)
                if not (self.running and is_full):
                    raise
                self._close(error)
                self._deferred |= {trial.number: plan for trial, plan in array}
                return [trial for trial, _ in array]
            array = array[size:]
            size = min(2 * size, most, len(array))
        return []

    def _submit_one(self, array: Sequence[tuple[Trial, LaunchPlan]], *, is_small: bool) -> None:
        """One array; `FullError` at once where fewer trials may find room, or room will come when
        others end."""
        queue = self._queue
        assert queue is not None
        number = sum(1 for _ in self.sweep.path.glob("array-*")) + 1
        folder, plans = self.sweep.path / f"array-{number:04d}", [plan for _, plan in array]
        full: list[FullError] = []

        def submit() -> None:
            try:
                queue.submit_many(
                    plans, folder, max_parallel=self.parallel, after=self._before(len(array))
                )
            except FullError as error:
                if is_small and not self.running:
                    raise
                full.append(error)

        patiently(submit, is_stopped=self.is_stopped)
        if full:
            raise full[0]
        for trial, _ in array:
            self._occupy(trial, None)

    def _before(self, count: int) -> list[str]:
        """Arrays that `count` more trials wait for, so that all of them keep to `parallel`."""
        if not self.parallel or len(self.running) + count <= self.parallel:
            return []
        jobs = (queue_job(t.run, t.run.status().attempt) for t in self.running.values())
        return list(dict.fromkeys(array_of(job) for job in jobs if job))

    def _close(self, error: LauncherError) -> None:
        self.refusal, self._closed_until = error, time.monotonic() + _FULL_S

    def _start_here(self, trial: Trial) -> bool:
        """Whether the trial has been dealt with; False if it waits for a better moment."""
        slot = free_slot([*self._slots.values()], self.parallel or 1)
        plan = self._plan(trial, slot)
        if plan is None:
            return True
        try:
            backend = variants.LAUNCHERS.load(self.backend_name)()
            # Not attached: trials outlive a controller that is killed, and the next adopts them.
            patiently(lambda: backend.submit(plan, attached=False), is_stopped=self.is_stopped)
        except (BusyError, StorageError) as error:
            # A machine that is too busy, or a full disk, is no fault of the trial's.
            start.note_not_submitted(trial.run, plan.attempt, error)
            if not self.running:
                raise
            self._close(error)
            return False
        except LauncherError as error:
            _fail(trial, error)
            return True
        self._occupy(trial, slot)
        return True

    def _plan(self, trial: Trial, slot: int | None) -> LaunchPlan | None:
        """The launch plan of the trial's next attempt, or None: the trial has failed."""
        if trial.number in self._deferred:
            return self._deferred.pop(trial.number)
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
        queue = self._queue
        assert queue is not None
        states = {trial.number: trial.run.status() for trial in trials}
        wait_s = _ENDING_S if any(map(settled, states.values())) else _ASK_S
        if time.monotonic() < self._asked + wait_s:
            return []
        self._asked = time.monotonic()
        jobs = {t.number: queue_job(t.run, states[t.number].attempt) or "" for t in trials}
        try:
            known = queue.observe([job for job in jobs.values() if job])
        except BusyError:
            return []
        lasting = {job for job, found in known.items() if found.state is not AttemptState.gone}
        done = [
            trial
            for trial in trials
            if jobs[trial.number] not in lasting
            and not self._may_be_known_later(trial, jobs, known)
        ]
        for trial in done:
            status, job = trial.run.status(), jobs[trial.number]
            if not settled(status):
                seen = scheduled.settle(queue, trial.run.path, status, job, known.get(job))
                trial.run.set_status(seen.state, reason=seen.reason, exit_code=seen.exit_code)
        return done

    def _may_be_known_later(
        self, trial: Trial, jobs: Mapping[int, str], known: Mapping[str, object]
    ) -> bool:
        """Whether a trial without a result is missing from the queue's answer only lately."""
        if jobs[trial.number] in known or settled(trial.run.status()):
            self._missing.pop(trial.number, None)
            return False
        since = self._missing.setdefault(trial.number, time.monotonic())
        return time.monotonic() - since < MISSING_S


def _is_gone(trial: Trial) -> bool:
    attempt = trial.run.status().attempt
    backend = backend_of(trial.run, attempt)
    if backend is None or backend.status(trial.run, attempt) is not AttemptState.gone:
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
    trial.run.set_status(State.failed, reason=reason, exit_code=int(ExitCode.internal), lost=True)
