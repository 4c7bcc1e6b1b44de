"""The teacher: a frozen model, whole on each rank, asked for its logits at the targets of a row.

`Taught` is what objectives share that learn from one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from launcher import bases
from launcher.config.check import teacher_checks
from launcher.config.derive import memory, vocabulary
from launcher.config.schema import Config, ModelConfig, ObjectiveConfig, TinyModelConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError, Problem
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.tokenizer import load_tokenizer
from launcher.objectives.base import Objective, Records

if TYPE_CHECKING:
    import torch

    from launcher.data.pack.loader import Row
    from launcher.model.divergence import Measure, WholeTeacher
    from launcher.model.head import Head, TargetHead

WHERE = "objective.teacher"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run has settled of its teacher."""

    tokens: int
    """Tokens of the vocabulary that student and teacher share."""
    files: list[list[Any]]
    """Name, size and time of the teacher's files, where they are here."""
    is_folder: bool
    """Whether it is named by a folder, and not as one of the hub."""
    max_length: int
    """Tokens of the longest text."""
    trust_remote_code: bool


def require_same_tokens(config: Config, *, loads: bool) -> int:
    """How many tokens student and teacher have; `ConfigError` unless they are the same ones.

    Without `loads` nothing is downloaded or made: 0 where the files that are here do not tell.
    """
    name, revision = _named(config.objective)
    ours, theirs = _stored(config), _read(name, revision)
    if ours is None or theirs is None:
        if not loads:
            return 0
        model = ModelConfig(
            name=name, revision=revision, trust_remote_code=config.model.trust_remote_code
        )
        ours = load_tokenizer(config.model).get_vocab()
        with blamed():
            theirs = load_tokenizer(model).get_vocab()
    other = vocabulary.difference(ours, theirs)
    if other:
        raise ConfigError([teacher_checks.of_tokenizer(WHERE, name, other)])
    count, most = max(ours.values()) + 1, getattr(config.objective, "top_k", None)
    if most is not None and most > count:
        found = f"{most:,} of {count:,} tokens"
        hint = "objective.top_k=null compares all of them, beside the teacher"
        raise ConfigError(found, where="objective.top_k", hint=hint)
    return count


def facts(config: Config) -> Facts:
    """What is settled of the teacher; `ConfigError` if it has other tokens than the student."""
    folder = memory.local_folder(*_named(config.objective))
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder else []
    return Facts(
        tokens=require_same_tokens(config, loads=True),
        files=[[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        is_folder=runtime.user_path(_named(config.objective)[0]).is_dir(),
        max_length=config.data.max_length,
        trust_remote_code=config.model.trust_remote_code,
    )


def _named(options: ObjectiveConfig) -> tuple[str, str | None]:
    return options.models["teacher"]


def _stored(config: Config) -> Mapping[str, int] | None:
    model = config.model
    if isinstance(model, TinyModelConfig) and not model.tokenizer:
        if model.add_tokens:
            return None
        return vocabulary.read(bases.tiny_folder(model, runtime.cache_dir()))
    return teacher_checks.own_tokens(config)


def _read(name: str, revision: str | None) -> Mapping[str, int] | None:
    folder = memory.local_folder(name, revision)
    return vocabulary.read(folder) if folder else None


@contextmanager
def blamed() -> Iterator[None]:
    """What is wrong with a model within it is said of the teacher."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            [
                Problem(
                    WHERE if problem.where == "model.name" else problem.where,
                    problem.found,
                    problem.hint.replace("model.name", WHERE),
                )
                for problem in error.problems
            ]
        ) from error


def load(options: ObjectiveConfig, known: Facts, student: Any) -> TargetHead:
    """The teacher in the number format and with the attention of `student`, a bare transformers or
    peft model; on the CPU, under its head. `ConfigError` if it cannot be used."""
    from launcher.model.head import TargetHead
    from launcher.model.load import load_frozen

    name, revision = _named(options)
    with blamed():
        model = load_frozen(
            ModelConfig(name=name, revision=revision, trust_remote_code=known.trust_remote_code),
            student,
            known.max_length,
        )
    rows = len(model.get_output_embeddings().weight)
    if rows < known.tokens:
        raise ConfigError(
            f"{name} has logits for {rows:,} tokens, its tokenizer has {known.tokens:,}",
            where=WHERE,
            hint="give a teacher whose embedding holds all tokens of its tokenizer",
        )
    return TargetHead(model)


class Taught(Objective):
    """An objective that may learn from a teacher, the one that its options name in `models`."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._facts: Facts | None = None
        self._teacher: TargetHead | None = None

    @property
    def facts(self) -> Facts:
        """What is known of the teacher once the data is settled, or a run's state restored."""
        assert self._facts is not None
        return self._facts

    @property
    def is_beside(self) -> bool:
        """Whether the teacher is computed beside the model."""
        return bool(self.options.beside)

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """The tokens that both models know; `ConfigError` for a teacher with other ones."""
        if self.options.models:
            self._facts = facts(config)

    def foresee(self, config: Config, records: Records) -> None:
        """The same, as far as files tell that are here."""
        if self.options.models:
            require_same_tokens(config, loads=False)

    @property
    def state(self) -> dict[str, Any] | None:
        """What is known of the teacher."""
        return asdict(self._facts) if self._facts else None

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what a run knows of its teacher."""
        self._facts = Facts(**state)

    def head(self, model: Any, *, counts_hits: bool = False) -> Head:
        """What computes in the model; a teacher beside it is loaded in its number format."""
        if self.is_beside and self._teacher is None:
            self._teacher = load(self.options, self.facts, model)
        return super().head(model, counts_hits=counts_hits)

    def companions(self, device: torch.device) -> Sequence[tuple[Head, Any]]:
        """The teacher, if it is beside the model, on `device`."""
        if self._teacher is None:
            return ()
        return ((self._teacher, self._teacher.model.to(device)),)

    def whole_teacher(self, row: Row, measure: Measure) -> WholeTeacher:
        """All that the teacher beside the model says of the row's targets."""
        from launcher.model.divergence import WholeTeacher

        asked = self._teacher
        assert asked is not None
        return WholeTeacher(asked.logits_by_part(asked.model, row), self.facts.tokens, measure)
