"""Numbers for Prometheus: of requests, uploads and jobs; nothing of who or what."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import func, select

from launcher.serve.db.database import AWAY, Database
from launcher.serve.db.tables import RUN_STATES, Batch, BatchState, EvalRun, Job, JobState

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
#: HTTP's, so that clients cannot make up labels.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """What one server has counted. Jobs and batches are counted in the database when asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._requests = Counter(
            "launcher_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "launcher_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._uploaded = Counter(
            "launcher_uploaded_bytes", "Bytes of files received.", registry=self._registry
        )

    def served(self, method: str, route: str, status: int, took_s: float) -> None:
        """One more request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(took_s)

    def uploaded(self, num_bytes: int) -> None:
        """So much more of a file."""
        self._uploaded.inc(num_bytes)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def describe(self) -> list[GaugeMetricFamily]:
        """What `collect` yields, without asking the database."""
        return [_jobs(), _batches(), _eval_runs()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Jobs, batches and runs of evals by state; nothing while the database is away, when the
        other numbers matter most."""
        try:
            with self._database.read() as session:
                rows = session.execute(select(Job.state, func.count()).group_by(Job.state))
                jobs = {state.value: int(count) for state, count in rows}
                rows = session.execute(select(Batch.state, func.count()).group_by(Batch.state))
                batches = {state.value: int(count) for state, count in rows}
                found = session.execute(select(EvalRun.state, func.count()).group_by(EvalRun.state))
                runs = {state: int(count) for state, count in found}
        except AWAY:
            return
        for family, states, counts in (
            (_jobs(), [state.value for state in JobState], jobs),
            (_batches(), [state.value for state in BatchState], batches),
            (_eval_runs(), RUN_STATES, runs),
        ):
            for state in states:
                family.add_metric([state], counts.get(state, 0))
            yield family


def _jobs() -> GaugeMetricFamily:
    return GaugeMetricFamily("launcher_jobs", "Jobs by state.", labels=["state"])


def _batches() -> GaugeMetricFamily:
    return GaugeMetricFamily("launcher_batches", "Batches by state.", labels=["state"])


def _eval_runs() -> GaugeMetricFamily:
    return GaugeMetricFamily("launcher_eval_runs", "Runs of evals by state.", labels=["state"])
