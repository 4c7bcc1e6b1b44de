"""Weights & Biases: one run for all attempts, quiet, and never in the way of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config import schema
from launcher.core import runtime
from launcher.core.rundir import RunDir
from launcher.track.tracker import finite, series, tracker_id

#: Longest wait for the service at the start and at the end, in seconds; then the run goes on
#: offline.
INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 300.0


class WandbTracker:
    """Follows a run under the id made with the run folder, so a resumed run stays one run.

    Without credentials (mode auto), or when the service cannot be reached, the data stay in the run
    folder under wandb/ and `wandb sync` uploads them later.
    """

    stays_on = False

    def __init__(
        self,
        run: RunDir,
        config: schema.Config,
        resolved: Mapping[str, Any],
        *,
        init_timeout_s: float = INIT_TIMEOUT_S,
    ) -> None:
        self._dir = run
        self._config = config
        self._resolved = dict(resolved)
        self._id = tracker_id(run, "wandb")
        self._init_timeout_s = init_timeout_s
        self._run: Any = None

    @property
    def mode(self) -> str:
        """online or offline, by config and by whether there are credentials."""
        mode = self._config.track.wandb.mode
        if mode is schema.WandbMode.auto:
            return "online" if runtime.has_wandb_credentials() else "offline"
        return str(mode.value)

    def start(self, resumed_step: int | None) -> None:
        """Open or rejoin the run; offline if the service does not answer in time."""
        import wandb

        try:
            self._run = self._init(self.mode)
        except wandb.errors.Error:
            if self.mode == "offline":
                raise
            # The service process holds on to the id of the failed attempt.
            wandb.teardown()
            self._run = self._init("offline")
        # Own step metric: the service drops what is logged at a step it has seen, and a resumed run
        # goes back to its checkpoint.
        self._run.define_metric("*", step_metric="step")

    def _init(self, mode: str) -> Any:
        import wandb

        runtime.keep_wandb_from_advising()
        options = self._config.track.wandb
        return wandb.init(
            id=self._id,
            resume="allow",
            dir=str(self._dir),
            mode=mode,  # type: ignore[arg-type]
            name=options.name or self._dir.name,
            project=options.project,
            entity=options.entity,
            group=options.group,
            tags=self._config.run.tags,
            config=self._resolved,
            settings=wandb.Settings(
                init_timeout=self._init_timeout_s,
                finish_timeout=FINISH_TIMEOUT_S,
                console="off",
                silent=True,
            ),
        )

    def log(self, values: Mapping[str, Any]) -> None:
        """The numbers of the line, with its step as one of them."""
        self._run.log({"step": values["step"], **series(values)})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers, shown in the run table."""
        self._run.summary.update(finite(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of plain values."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def artifact(self, name: str, folder: Path) -> None:
        """Upload the folder as a model artifact, if `track.wandb.log_export` says so."""
        import wandb

        if not self._config.track.wandb.log_export:
            return
        artifact = wandb.Artifact(f"{name}-{self._id}", type="model")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # add_dir would print, whatever the settings say.
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
        self._run.log_artifact(artifact)

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """Upload what is left, within FINISH_TIMEOUT_S, and end wandb's service process."""
        import wandb

        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        wandb.teardown(exit_code)
