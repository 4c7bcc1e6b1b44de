"""`sweep=optuna`: trials proposed by Optuna, whose storage lies in the sweep folder.

Order of events, so that a controller may be killed between any two: a proposal is in the storage
before its folder is made, a trial has ended before its value is told.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from launcher.config.schema.sweep import Pruner, Sampler
from launcher.core import registry
from launcher.core.errors import ConfigError
from launcher.core.rundir import State
from launcher.launch.outcome import settled
from launcher.sweeps.folder import Request, SweepDir, Trial, may_pass, objective, values
from launcher.sweeps.pool import Pool
from launcher.sweeps.space import Dimension

if TYPE_CHECKING:
    import optuna


def require() -> None:
    """Raise `ConfigError` if Optuna is not installed; does not import it, which takes a second."""
    if not registry.installed("optuna"):
        hint = registry.install("optuna", "sweep")
        raise ConfigError("Optuna is not installed", where="sweep", hint=hint)


def library() -> Any:
    """Optuna, quiet; `ConfigError` if it is not installed."""
    require()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def load(sweep: SweepDir, request: Request) -> optuna.Study:
    """The study in the sweep folder, made if there is none. The caller holds the sweep's lock."""
    found = library()
    _cut_torn_line(sweep)
    backend = found.storages.journal.JournalFileBackend(str(sweep.journal), lock_obj=_Held())
    study: optuna.Study = found.create_study(
        study_name=sweep.name,
        storage=found.storages.JournalStorage(backend),
        direction="maximize" if request.maximize else "minimize",
        pruner=_pruner(request.options),
        load_if_exists=True,
    )
    return study


class Control(Protocol):
    """Makes, starts and watches trials: `launcher.sweeps.controller.SweepController`."""

    sweep: SweepDir
    request: Request
    pool: Pool

    def claim(self, words: Sequence[str], number: int | None = None) -> Trial:
        """The trial with these overrides and this number."""

    def is_open(self, trial: Trial) -> bool:
        """Whether the trial is still to be started."""

    def launch(self, trials: Sequence[Trial]) -> list[Trial]:
        """Start trials; returns those for which there is no room yet."""

    def wait(self) -> list[Trial]:
        """Wait a moment; returns the trials that have ended. Raises `Stopped`."""


class OptunaSearch:
    """Asks for trials, reports what they reach, ends those that fall behind."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.request = control.request
        self.optuna = library()
        self.study = load(control.sweep, control.request)
        self.space = {d.key: distribution(d) for d in self.request.swept}
        self.open: dict[int, Trial] = {}

    def run(self) -> None:
        """Until as many trials as asked for have ended. Raises `Stopped`."""
        waiting = self._recovered()
        total = self.request.options["trials"]
        while True:
            asked = len(self.study.trials)
            room = self._room()
            while len(waiting) < room and asked < total:
                asked += 1
                trial = self._ask()
                if self.control.is_open(trial):
                    waiting.append(trial)
                else:
                    self._tell(trial)
            now, waiting = waiting[:room], waiting[room:]
            waiting = self.control.launch(now) + waiting
            for trial in now:
                if trial not in waiting and trial.number not in self.control.pool.running:
                    self._tell(trial)
            if not (waiting or self.control.pool.running) and asked >= total:
                return
            for trial in self.control.wait():
                self._report(trial)
                self._tell(trial)
            for trial in list(self.control.pool.running.values()):
                self._report(trial)

    def _room(self) -> int:
        """How many trials to propose now. A queue gets few at a time too: later ones know more."""
        pool = self.control.pool
        if pool.room is not None:
            return pool.room
        # As many as are drawn without knowledge anyway.
        limit = pool.parallel or max(1, self.request.options["startup_trials"])
        return max(0, limit - len(pool.running))

    def _recovered(self) -> list[Trial]:
        """Trials that an earlier controller left open: those that still have to be started."""
        waiting = []
        for frozen in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)):
            trial = self._made(frozen.number, frozen.params)
            if self.control.is_open(trial):
                waiting.append(trial)
            elif trial.number not in self.control.pool.running:
                self._report(trial)
                self._tell(trial)
        return waiting

    def _ask(self) -> Trial:
        # A sampler of its own for each trial: after a kill the same proposals follow.
        self.study.sampler = _sampler(self.request.options, len(self.study.trials))
        asked = self.study.ask(self.space)
        return self._made(asked.number, asked.params)

    def _made(self, number: int, parameters: Mapping[str, Any]) -> Trial:
        words = [d.word(parameters[d.key]) for d in self.request.swept]
        return self.control.claim(words, number)

    def _live(self, number: int) -> Any:
        frozen = self.study.trials[number]
        return self.optuna.trial.Trial(self.study, frozen._trial_id), frozen

    def _report(self, trial: Trial) -> None:
        """Hand new values to the study; end the trial if it has fallen behind."""
        live, frozen = self._live(trial.number)
        if frozen.state.is_finished():
            return
        for step, value in values(trial.run, self.request.metric):
            if step in frozen.intermediate_values:
                continue
            live.report(value, step)
            running = trial.number in self.control.pool.running and not trial.pruned
            if running and self._falls_behind(live, step):
                trial.prune(step, value)
                pruned = dataclasses.replace(trial, pruned={"step": step, "value": value})
                self.control.pool.running[trial.number] = pruned
                self.control.pool.cancel(trial, now=True)
                return

    def _falls_behind(self, live: Any, step: int) -> bool:
        return step >= self.request.options["prune_from"] and bool(live.should_prune())

    def _tell(self, trial: Trial) -> None:
        """Tell the study how a trial has ended; one that was only stopped stays open."""
        states = self.optuna.trial.TrialState
        status = trial.run.status()
        trial = self.control.sweep.trial(trial.number) or trial
        if trial.pruned and settled(status) and status.state is not State.succeeded:
            reason = f"pruned at step {trial.pruned['step']}: value {trial.pruned['value']:.6g}"
            trial.run.set_status(State.cancelled, reason=reason, exit_code=status.exit_code)
            self.study.tell(trial.number, state=states.PRUNED, skip_if_finished=True)
            return
        if not status.state.is_final or may_pass(status):
            return
        value = objective(trial, self.request.metric)
        if value is None:
            self.study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
        else:
            self.study.tell(trial.number, value, skip_if_finished=True)


def distribution(dimension: Dimension) -> Any:
    """What Optuna chooses a value of this dimension from."""
    kinds = library().distributions
    if dimension.values:
        return kinds.CategoricalDistribution(dimension.values)
    if dimension.whole:
        low, high = int(dimension.low), int(dimension.high)
        return kinds.IntDistribution(low, high, log=dimension.log)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _sampler(options: Mapping[str, Any], number: int) -> Any:
    samplers = library().samplers
    seed = (options["seed"] + 1_000_003 * number) % 2**32
    if options["sampler"] == Sampler.random.name:
        return samplers.RandomSampler(seed=seed)
    # constant_liar: trials that still run repel proposals, so that parallel ones differ.
    startup = options["startup_trials"]
    return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _pruner(options: Mapping[str, Any]) -> Any:
    pruners, name = library().pruners, options["pruner"]
    first, reduction = options["prune_from"], options["reduction"]
    if name == Pruner.asha.name:
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=reduction)
    if name == Pruner.hyperband.name:
        return pruners.HyperbandPruner(min_resource=first, reduction_factor=reduction)
    if name == Pruner.median.name:
        startup = options["startup_trials"]
        return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=first)
    return pruners.NopPruner()


class _Held:
    """In the place of Optuna's lock, which would outlive a killed controller: we hold our own."""

    def acquire(self) -> bool:
        """Always ours."""
        return True

    def release(self) -> None:
        """Goes with the sweep's lock."""


def _cut_torn_line(sweep: SweepDir) -> None:
    """Drop the end of a line that a killed controller did not finish writing."""
    if not sweep.journal.exists():
        return
    with open(sweep.journal, "rb+") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole != len(text):
            file.truncate(whole)
