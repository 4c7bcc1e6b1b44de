"""Checkpoints, written by all ranks beside what is there; one is valid only once it holds
manifest.json.

    checkpoints/step-00000100/
        weights-rank-00000.safetensors     this rank's part of the fp32 weights
        optimizer-rank-00000.safetensors   the same parts of the optimizer's state
        manifest.json                      written last: sizes and hashes of all files

Only trained weights are in it: the frozen base of an adapter run is never saved. The layout is by
parameter, not by rank, so a checkpoint can be read at another number of ranks or ZeRO stage.

Training waits while each rank copies its part to host memory. A thread of the rank then writes and
hashes the copy, and the step after which all ranks are done ends with the manifest. At most one
checkpoint is under way.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launcher.config.schema import CheckpointConfig
from launcher.core.errors import LauncherError, Problem, StorageError
from launcher.core.files import fsync_folder, storage_error, storage_errors, write_json
from launcher.core.processes import available_memory
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.distributed.collectives import gather_objects
from launcher.health.heartbeat import Heartbeat
from launcher.model import digests
from launcher.model.checkpoint import VERSION, checkpoints
from launcher.model.fragments import Fragment, ParameterShard, write_fragments
from launcher.train.engine import Engine

_TEMPORARY = ".writing-"
#: Of the host's free memory, what the copies of its ranks may take.
_SHARE = 0.8
#: Seconds between two looks at a thread that writes.
_LOOK_S = 0.2
#: Niceness of a thread that writes: training goes first.
_NICENESS = 10

Say = Callable[[str], None]


def clean_up(run: RunDir) -> None:
    """Remove what an interrupted save or rotation left; rank 0 only."""
    with contextlib.suppress(FileNotFoundError):
        for path in run.checkpoints.iterdir():
            if path.name.startswith(_TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)


class Saver:
    """The saves of a run; all ranks call the same methods together.

    Methods raise `StorageError`, on every rank alike, if any rank could not write; older
    checkpoints are untouched then.
    """

    def __init__(
        self,
        run: RunDir,
        engine: Engine,
        ranks: Ranks,
        options: CheckpointConfig,
        heart: Heartbeat,
        *,
        step: int = 0,
        origin: Mapping[str, str] | None = None,
        warn: Say = lambda text: None,
    ) -> None:
        """`step` is that of the checkpoint which the run goes on from; `origin` what its weights
        stand on (see `launcher.fingerprint.origin`)."""
        self.step = step
        """Step of the last checkpoint that is there or under way."""
        self.seconds = 0.0
        """How long the last one took from its copy to its last byte, on the slowest rank."""
        self._run, self._engine, self._ranks, self._options = run, engine, ranks, options
        self._heart, self._origin, self._warn = heart, dict(origin or {}), warn
        self._copy = _Copy() if options.background else None
        self._pending: _Pending | None = None

    def save(
        self, state: dict[str, Any], step: int, best: int | None = None, *, waits: bool = False
    ) -> None:
        """Begin the checkpoint of `step`, once the one under way is there; who `waits` finds it
        there afterwards, and needs no copy.

        `state` is the loop's own; the checkpoint of step `best` is kept too.
        """
        self.finish()
        self._heart.beat("save", step)
        folder = self._run.checkpoints / f"step-{step:08d}"
        temporary = folder.with_name(f"{_TEMPORARY}{folder.name}")
        error: LauncherError | None = None
        if self._ranks.is_main:
            try:
                with storage_errors(temporary):
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
            except LauncherError as caught:
                error = caught
        if refused := gather_objects(error.problems if error else None)[0]:
            raise StorageError(refused)
        manifest = _manifest(self._engine, step, state, self._origin)
        is_copied, files = self._files(copies=not waits)
        writer = _Writer(temporary, files)
        self._pending = _Pending(folder, temporary, manifest, writer, best)
        self.step = step
        if is_copied:
            writer.start()
        else:
            writer.write(self._heart.again)
        if waits:
            self.finish()

    def report(self) -> list[float]:
        """What `settle` needs of this rank, for a sum over the ranks that is made anyway: whether
        it still writes, and whether it has failed. Empty, on all ranks alike, if nothing is under
        way."""
        if self._pending is None:
            return []
        writer = self._pending.writer
        is_done = writer.done.is_set()
        return [float(not is_done), float(is_done and bool(writer.problems))]

    def settle(self, sums: list[float]) -> None:
        """End the checkpoint under way if all ranks have written it; `sums` is that of reports."""
        if not sums or self._pending is None:
            return
        writing, failed = sums
        if failed:
            self._pending.writer.given_up.set()
        if failed or not writing:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint under way, if there is one, and make it valid."""
        pending = self._pending
        if pending is None:
            return
        writer = pending.writer
        if not writer.done.is_set():
            self._heart.beat("save", self.step)
            writer.wait(self._heart.again)
        self._pending = None
        parts = gather_objects((writer.files, writer.problems, writer.seconds))
        problems = [problem for _, found, _ in parts for problem in found]
        self.seconds = max(seconds for _, _, seconds in parts)
        if not problems and self._ranks.is_main:
            files = {name: entry for written, _, _ in parts for name, entry in written.items()}
            seconds = {"seconds": round(self.seconds, 3)}
            try:
                _commit(pending, {**pending.manifest, **seconds, "files": files})
            except LauncherError as caught:
                problems = list(caught.problems)
        if problems := gather_objects(problems)[0]:
            if self._ranks.is_main:
                shutil.rmtree(pending.temporary, ignore_errors=True)
            raise StorageError(problems)
        if self._ranks.is_main:
            rotate(self._run, self._options, self.step, pending.best)

    def give_up(self) -> None:
        """Leave the checkpoint under way, and the room that it takes on the disk: for a rank that
        ends by itself."""
        if self._pending is None:
            return
        self._pending.writer.given_up.set()
        self._pending.writer.wait(self._heart.again)
        if self._ranks.is_main:
            shutil.rmtree(self._pending.temporary, ignore_errors=True)

    def _files(self, *, copies: bool) -> tuple[bool, dict[str, list[Fragment] | bytes]]:
        """File name -> this rank's part of it, and whether that is a copy."""
        engine, rank = self._engine, self._ranks.rank
        if engine.zero == 0 and rank != 0:
            return copies, {}
        pieces = list(engine.pieces())
        fragments = {
            f"weights-rank-{rank:05d}.safetensors": list(_weight_fragments(pieces)),
            f"optimizer-rank-{rank:05d}.safetensors": list(
                _state_fragments(pieces, engine.base_optimizer.state)
            ),
        }
        copy = self._copy if copies else None
        if copy is not None and not copy.fits(fragments, self._ranks):
            self._warn(
                "there is no room in memory for a copy of the weights and the optimizer's state:"
                " training waits while checkpoints are written"
            )
            copy = self._copy = None
        if copy is not None:
            fragments = copy.take(fragments)
        files: dict[str, list[Fragment] | bytes] = {**fragments}
        if opaque := _opaque_state(engine):
            buffer = io.BytesIO()
            torch.save(opaque, buffer)  # not to the file: torch makes of a full disk a RuntimeError
            files[f"optimizer-rank-{rank:05d}.pt"] = buffer.getvalue()
        return copy is not None, files


@dataclass(frozen=True, slots=True)
class _Pending:
    """A checkpoint under way."""

    folder: Path
    temporary: Path
    manifest: dict[str, Any]
    writer: _Writer
    best: int | None


class _Copy:
    """Host memory for this rank's part of a checkpoint, kept from save to save: its pages are
    touched once, and locked once where a GPU copies into them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def fits(self, files: Mapping[str, list[Fragment]], ranks: Ranks) -> bool:
        """Whether there is room for the copies of all ranks of this host."""
        needed = 4 * _numel(files)
        return needed <= self._memory.nbytes or (
            needed * ranks.local_world_size <= _SHARE * available_memory()
        )

    def take(self, files: Mapping[str, list[Fragment]]) -> dict[str, list[Fragment]]:
        """The same fragments as they are now, whatever becomes of the tensors."""
        if self._memory.numel() < _numel(files):
            _lock(self._memory, False)
            self._memory = torch.empty(_numel(files), dtype=torch.float32)
            _lock(self._memory, True)
        start = 0
        copied: dict[str, list[Fragment]] = {}
        for name, fragments in files.items():
            copied[name] = []
            for fragment in fragments:
                place = self._memory.narrow(0, start, fragment.numel)
                place.copy_(fragment.read(), non_blocking=True)
                copied[name].append(replace(fragment, read=partial(_itself, place)))
                start += fragment.numel
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _numel(files: Mapping[str, list[Fragment]]) -> int:
    return sum(fragment.numel for fragments in files.values() for fragment in fragments)


def _lock(memory: torch.Tensor, wanted: bool) -> None:
    """Lock the pages of `memory` for copies from a GPU, or no more. Torch's own pinned memory would
    take the next power of two; what cannot be locked is copied to all the same, more slowly."""
    if not torch.cuda.is_available() or not memory.nbytes:
        return
    library = torch.cuda.cudart()
    if wanted:
        library.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    else:
        library.cudaHostUnregister(memory.data_ptr())


class _Writer(threading.Thread):
    """Writes this rank's files of one checkpoint."""

    def __init__(self, folder: Path, parts: Mapping[str, list[Fragment] | bytes]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.files: dict[str, dict[str, Any]] = {}
        """What the manifest says of each: bytes and hash."""
        self.problems: tuple[Problem, ...] = ()
        self.seconds = 0.0
        self.done = threading.Event()
        self.given_up = threading.Event()
        """Set where another rank has failed, so that nothing more is written."""
        self._folder, self._parts = folder, parts
        self._blocks = 0
        self._began = time.monotonic()

    def run(self) -> None:
        """Write behind what this rank computes."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        self.write(lambda: None)

    def write(self, beat: Callable[[], None]) -> None:
        """Write all files; what goes wrong is kept in `problems`."""

        def went_on() -> None:
            self._blocks += 1
            beat()
            if self.given_up.is_set():
                raise LauncherError("given up, as another rank could not write")

        try:
            for name, content in self._parts.items():
                self.files[name] = _write(self._folder / name, content, went_on)
        except LauncherError as error:
            self.problems = error.problems
        except Exception as error:  # it would be lost with the thread
            known = storage_error(error, self._folder) if isinstance(error, OSError) else None
            found = Problem(str(self._folder), f"{type(error).__name__}: {error}")
            self.problems = known.problems if known else (found,)
        finally:
            if self.problems:  # what others are to write may need the room
                for name in self._parts:
                    with contextlib.suppress(OSError):
                        (self._folder / name).unlink()
            self._parts = {}
            self.seconds = time.monotonic() - self._began
            self.done.set()

    def wait(self, beat: Callable[[], None]) -> None:
        """Until it is done; `beat` is called while it gets on."""
        seen = -1
        while not self.done.wait(_LOOK_S):
            if self._blocks != seen:
                seen = self._blocks
                beat()


def _write(path: Path, content: list[Fragment] | bytes, beat: Callable[[], None]) -> dict[str, Any]:
    if isinstance(content, bytes):
        with storage_errors(path), open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": len(content), "blake2b": digests.of(content)}
    size, found = write_fragments(path, content, beat)
    return {"bytes": size, "blake2b": found}


def _commit(pending: _Pending, manifest: dict[str, Any]) -> None:
    """Make a checkpoint of what all ranks have written; rank 0 only."""
    folder = pending.folder
    before = folder.with_name(f"{_TEMPORARY}old-{folder.name}")
    write_json(pending.temporary / "manifest.json", manifest)
    with storage_errors(folder):
        if folder.exists():  # a damaged one of the same step, which a resume passed over
            folder.rename(before)
        pending.temporary.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def rotate(run: RunDir, config: CheckpointConfig, step: int, best: int | None = None) -> None:
    """Delete all but the newest `keep_last`, the best `keep_best` and that of step `best`, which
    the run may end with; rank 0 only.

    Those after `step`, the one just written, are damaged: a resume passed over them. They go too.
    """
    present = checkpoints(run)
    found = [c for c in present if c.step <= step]
    kept = {c.path for c in found[-max(1, config.keep_last) :]}
    scored = [c for c in found if math.isfinite(c.state.get("eval_loss") or math.nan)]
    scored.sort(key=lambda c: c.state["eval_loss"])
    kept |= {c.path for c in scored[: config.keep_best]}
    kept |= {c.path for c in found if c.step == best}
    for checkpoint in present:
        if checkpoint.path not in kept:
            doomed = checkpoint.path.with_name(f"{_TEMPORARY}old-{checkpoint.path.name}")
            with contextlib.suppress(OSError):
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


# ---- what a checkpoint holds


def _weight_fragments(pieces: list[ParameterShard]) -> Iterator[Fragment]:
    for piece in pieces:
        yield Fragment(
            piece.name, piece.shape, piece.offset, piece.numel, partial(piece.of, piece.flat)
        )


def _state_fragments(pieces: list[ParameterShard], state: Any) -> Iterator[Fragment]:
    for piece in pieces:
        for key, value in state.get(piece.flat, {}).items():
            if _is_laid_out_like(value, piece.flat):
                yield Fragment(
                    f"{piece.name}|{key}",
                    piece.shape,
                    piece.offset,
                    piece.numel,
                    partial(piece.of, value),
                )


def _is_laid_out_like(value: Any, flat: torch.Tensor) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.numel() == flat.numel()
        and value.dim() > 0
    )


def _scalars(engine: Engine) -> dict[str, float]:
    """Counters in the optimizer's state (Adam's step), which are the same for every parameter.

    An int where the optimizer counts in Python (DeepSpeed's CPUAdam), a float where in a tensor.
    """
    scalars: dict[str, float] = {}
    for values in engine.base_optimizer.state.values():
        for key, value in values.items():
            if isinstance(value, int):
                scalars[key] = value
            elif isinstance(value, torch.Tensor) and value.dim() == 0:
                scalars[key] = float(value)
    return scalars


def _opaque_state(engine: Engine) -> dict[int, dict[str, Any]]:
    """State that cannot be cut by parameter, by index of the flat parameter: kept as it is.

    8-bit moments with their block scales and counter, and DeepSpeed's Muon momentum at stages 1 and
    2, which covers all of a parameter on each rank that holds a part of it.
    """
    opaque: dict[int, dict[str, Any]] = {}
    for index, flat in enumerate(engine.flat_parameters()):
        values = engine.base_optimizer.state.get(flat, {})
        if any(_is_opaque(value, flat) for value in values.values()):
            opaque[index] = {k: v for k, v in values.items() if not _is_laid_out_like(v, flat)}
    return opaque


def _is_opaque(value: Any, flat: torch.Tensor) -> bool:
    is_tensor = isinstance(value, torch.Tensor) and value.dim() > 0
    return is_tensor and not _is_laid_out_like(value, flat)


def _manifest(
    engine: Engine, step: int, state: dict[str, Any], origin: dict[str, str]
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "step": step,
        "time": time.time(),
        "world_size": engine.plan.world_size,
        "zero": engine.zero,
        "precision": engine.plan.precision,
        "trainable": sorted(
            name for name, p in engine.module.named_parameters() if p.requires_grad
        ),
        "scalars": _scalars(engine),
        "scaler": engine.scaler_state(),
        "state": state,
        "origin": origin,
    }
