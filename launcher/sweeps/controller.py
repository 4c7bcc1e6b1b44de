"""The controller: makes the trials of a sweep, keeps them running, and goes on where it was.

Whatever it knows stands in the sweep folder before it acts on it. After a kill the next controller
finds each trial by its overrides: those that run are adopted, those that have ended are done, those
that were lost go on from their last checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from launcher.config.compose import compose, groups
from launcher.config.schema import Config
from launcher.core import streams
from launcher.core.errors import ConfigError, ExitCode, LauncherError, StorageError
from launcher.core.rundir import RunDir, State, command
from launcher.launch.outcome import settled
from launcher.launch.queue import has_queue
from launcher.sweeps import space, table
from launcher.sweeps.folder import Request, SweepDir, Trial, may_pass, objective
from launcher.sweeps.pool import Pool
from launcher.sweeps.proposals import OptunaSearch
from launcher.sweeps.trials import Maker

_POLL_S = 0.5
_QUEUE_POLL_S = 2.0


class Stopped(Exception):
    """The user has asked the controller to stop."""


class SweepController:
    """One process's work on a sweep; holds the sweep folder's lock while it lives."""

    def __init__(self, sweep: SweepDir, request: Request, *, follow: bool = True) -> None:
        """Without `follow` a queued back end gets the trials and the controller is done."""
        self.sweep, self.request, self.follow = sweep, request, follow
        sources = compose.Sources(request.config_dirs)
        self.options = sources.options
        self.space = space.read(request.words, self.options)
        self.stops = 0
        config = _any_config(Maker(sweep, request, sources=sources), self.space)
        self.pool = Pool(sweep, config, lambda: bool(self.stops))
        self.maker = Maker(sweep, request, self.pool.world_size, sources)
        self.pool.configs = self.maker.made
        self._claimed: set[int] = set()
        self._known: dict[tuple[str, ...], list[Trial]] = {}
        whole = [trial for trial in sweep.trials() if not trial.is_torn]
        for trial in whole:
            self._known.setdefault(trial.words, []).append(trial)
        # A trial that is made again gets the number that it had.
        taken = {trial.number for trial in whole}
        self._numbers = (number for number in itertools.count() if number not in taken)

    @staticmethod
    def submits_all(request: Request) -> bool:
        """Whether all trials can be handed over at once, so that no controller has to stay."""
        return has_queue(request.backend) and request.kind in ("grid", "random")

    def run(self) -> int:
        """Run the sweep to its end; returns the exit code."""
        # RunDir's lock is that of any folder: the kernel's, gone with the process.
        with RunDir(self.sweep.path).lock(), self._signals():
            try:
                self._by_kind()
            except Stopped:
                self.say(f"stopped: {command('sweep resume', self.sweep.path)} goes on")
                return ExitCode.preempted
        return self._result()

    def say(self, line: str) -> None:
        """A line for people; where nobody reads any more, the controller is to stop."""
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            streams.discard(sys.stderr)
            self.stops = max(1, self.stops)

    def _by_kind(self) -> None:
        if self.request.kind == "optuna":
            OptunaSearch(self).run()
        elif self.request.kind == "random":
            options = self.request.options
            self.batch(space.draws(self.space, options["trials"], options["seed"]))
        else:
            from launcher.sweeps import multirun

            multirun.run(self.space, self.options, self.sweep, self.batch)

    # ---- batches: grid, random and Hydra's sweepers

    def batch(self, words: Sequence[Sequence[str]]) -> list[float | None]:
        """Run trials with these overrides of their own; returns the value of each, if it has one.

        Raises `Stopped` when the user stops the controller.
        """
        trials = [self.claim(own) for own in words]
        waiting = [trial for trial in trials if self.is_open(trial)]
        if len(waiting) > 1:
            self.say(f"sweep    {self.sweep.name}: {len(trials)} trials, {len(waiting)} to run")
        while waiting or self.pool.running:
            room = self.pool.room
            now, waiting = (waiting, []) if room is None else (waiting[:room], waiting[room:])
            waiting = self.launch(now) + waiting
            if self.pool.is_queued and not self.follow:
                return [None] * len(trials)
            self.wait()
        return [objective(trial, self.request.metric) for trial in trials]

    def claim(self, words: Sequence[str], number: int | None = None) -> Trial:
        """The trial with these overrides: one made before that is not claimed yet, or a new one."""
        for trial in self._known.get(tuple(words), ()):
            if trial.number not in self._claimed and number in (None, trial.number):
                self._claimed.add(trial.number)
                return trial
        if number is None:
            number = next(self._numbers)
        self._claimed.add(number)
        trial = self.maker.make(number, words)
        if number not in self.maker.made:
            self.tell(trial)  # its config is wrong
        return trial

    # ---- what every kind needs

    def is_open(self, trial: Trial) -> bool:
        """Whether the trial is still to be started; one that runs is adopted."""
        if trial.number in self.maker.made:
            return True
        status = trial.run.status()
        if trial.pruned or (status.state.is_final and not may_pass(status)):
            return False
        if self.pool.adopt(trial):
            self.say(f"{trial.run.name}  goes on, started before")
            return False
        status = trial.run.status()
        return not status.state.is_final or may_pass(status)

    def launch(self, trials: Sequence[Trial]) -> list[Trial]:
        """Start trials and say so; returns those that wait for room in a queue."""
        try:
            left = self.pool.start(trials)
            if left and not self.follow and self.pool.refusal:
                raise self.pool.refusal
        except LauncherError:
            self.say(f"not submitted: {command('sweep resume', self.sweep.path)} tries again")
            if self.stops:
                raise Stopped from None
            raise
        if self.pool.is_queued and (count := len(trials) - len(left)):
            self.say(f"sweep    {self.sweep.name}: {count} trials queued")
        if left and self.pool.refusal:
            why = self.pool.refusal.problems[0].found.splitlines()[-1]
            self.say(f"waiting: {len(left)} trials follow when others have ended: {why}")
        if self.pool.is_queued:
            return left
        for trial in (trial for trial in trials if trial not in left):
            if trial.number in self.pool.running:
                self.say(f"{trial.run.name}  started: {table.shown(trial.words)}")
            else:
                self.tell(trial)
        return left

    def wait(self) -> list[Trial]:
        """Wait a moment; returns the trials that have ended. Raises `Stopped`."""
        time.sleep(_QUEUE_POLL_S if self.pool.is_queued else _POLL_S)
        ended = [self._fresh(trial) for trial in self.pool.ended()]
        for trial in ended:
            self.tell(trial)
        if self.stops:
            self._stop()
        return ended

    def tell(self, trial: Trial) -> None:
        """Say how a trial has ended."""
        status = trial.status()
        value = objective(trial, self.request.metric)
        parts = [f"{trial.run.name}  {trial.state(status)}"]
        if value is not None:
            parts.append(f"{self.request.metric} {value:.6g}")
        if status.reason and status.state is not State.succeeded:
            parts.append(status.reason.splitlines()[0])
        self.say(" | ".join([*parts, table.shown(trial.words)]))

    def _fresh(self, trial: Trial) -> Trial:
        return self.sweep.trial(trial.number) or trial

    def _stop(self) -> None:
        """End the controller: this machine's trials save and stop, queued ones go on."""
        if not self.pool.is_queued:
            self.say("stopping: trials save a checkpoint first; Ctrl-C again ends them at once")
            told = 0
            while self.pool.running:
                if self.stops > told:
                    told = self.stops
                    for trial in self.pool.running.values():
                        self.pool.cancel(trial, now=told > 1)
                time.sleep(_POLL_S)
                self.pool.ended()
        raise Stopped

    def _result(self) -> int:
        rows = table.rows(self.sweep)
        self.say(f"sweep    {self.sweep.name}: {table.summary(self.request, rows)}")
        if all(settled(row.status) for row in rows):
            self._say_best(rows)
        if count := table.again(rows):
            hint = command("sweep resume", self.sweep.path)
            self.say(f"again    {count} of the trials that were stopped or lost: {hint}")
        return table.exit_code(rows)

    def _say_best(self, rows: Sequence[table.TrialRow]) -> None:
        """What came of it: the best trial, how to have it again, and where all is shown."""
        from launcher.sweeps.page import build

        best = table.best(self.request, rows)
        if best is None:
            self.say(f"best     no trial has succeeded with a value of {self.request.metric}")
        else:
            self.say(f"best     {best.name}: {self.request.metric} {best.value:.6g}")
            self.say(f"with     {table.pasted(best.trial.words)}")
        try:
            self.say(f"report   {build(self.sweep)}")
        except StorageError as error:  # the trials are there all the same
            self.say(f"report   not written: {error}")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.stops += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wishes
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _any_config(maker: Maker, found: space.Space) -> Config:
    """The config of one trial, for what all of them share: the back end and its limits."""
    for words in found.corners(8):
        with contextlib.suppress(ConfigError):
            return maker.composed(words)[0]
    return compose.try_compose(maker.request.fixed, maker.request.config_dirs)[0]


def resume(sweep: SweepDir, *, follow: bool = True) -> int:
    """Go on with a sweep in the folder where it was started."""
    request = sweep.request()
    if os.path.isdir(request.cwd):
        os.chdir(request.cwd)
    groups.search_path(request.config_dirs)
    return SweepController(sweep, request, follow=follow).run()
