"""Checkpoints: written by all ranks beside what is there, valid only once they hold manifest.json;
loaded whatever number of ranks or stage wrote them.

    checkpoints/step-00000100/
        weights-rank-00000.safetensors     this rank's part of the fp32 weights
        optimizer-rank-00000.safetensors   the same parts of the optimizer's state
        manifest.json                      written last: sizes and hashes of all files

Only trained weights are in it: the frozen base of an adapter run is never saved. The layout is by
parameter, not by rank, so a checkpoint can be read at another number of ranks or ZeRO stage.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.config.schema import CheckpointConfig
from launcher.core.errors import LauncherError, StorageError
from launcher.core.files import fsync_folder, storage_errors, write_json
from launcher.core.rundir import RunDir
from launcher.distributed.collectives import gather_objects
from launcher.model.adapter import AdapterReader
from launcher.model.checkpoint import VERSION, Checkpoint, checkpoints, hash_file
from launcher.model.fragments import Fragment, FragmentReader, ParameterShard, write_fragments
from launcher.train.engine import Engine, import_deepspeed

_TEMPORARY = ".writing-"


def clean_up(run: RunDir) -> None:
    """Remove what an interrupted save or rotation left; rank 0 only."""
    with contextlib.suppress(FileNotFoundError):
        for path in run.checkpoints.iterdir():
            if path.name.startswith(_TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)


def save(
    run: RunDir,
    engine: Engine,
    step: int,
    rank: int,
    state: dict[str, Any],
    beat: Callable[[], None] = lambda: None,
    origin: Mapping[str, str] | None = None,
) -> Path:
    """Write checkpoint `step` with all ranks; `beat` is called after each tensor.

    `origin` is what the weights stand on (see `launcher.fingerprint.origin`).

    `StorageError` on every rank if any could not write; older checkpoints are untouched then.
    """
    started = time.monotonic()
    folder = run.checkpoints / f"step-{step:08d}"
    temporary = run.checkpoints / f"{_TEMPORARY}{folder.name}"
    error: LauncherError | None = None
    files: dict[str, dict[str, Any]] = {}
    if rank == 0:
        try:
            with storage_errors(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        except LauncherError as caught:
            error = caught
    refused = gather_objects(error.problems if error else None)[0]
    if refused:
        raise StorageError(refused)
    try:
        files = _write_rank(temporary, engine, rank, beat)
    except LauncherError as caught:
        error = caught
    except OSError as caught:  # a failure that has no hint of its own
        error = StorageError(str(caught), where=str(temporary))
    results = gather_objects((files, error.problems if error else None))
    problems = [problem for _, found in results if found for problem in found]
    if not problems and rank == 0:
        try:
            merged = {name: entry for written, _ in results for name, entry in written.items()}
            _finish(
                temporary, folder, _manifest(engine, step, state, merged, started, origin or {})
            )
        except LauncherError as caught:
            problems = list(caught.problems)
    problems = gather_objects(problems)[0]
    if problems:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(problems)
    return folder


def _write_rank(
    folder: Path, engine: Engine, rank: int, beat: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    if engine.zero == 0 and rank != 0:
        return {}
    pieces = list(engine.pieces())
    state = engine.base_optimizer.state
    written: dict[str, dict[str, Any]] = {}
    for name, fragments in (
        (f"weights-rank-{rank:05d}.safetensors", _weight_fragments(pieces)),
        (f"optimizer-rank-{rank:05d}.safetensors", _state_fragments(pieces, state)),
    ):
        size, digest = write_fragments(folder / name, fragments, beat)
        written[name] = {"bytes": size, "blake2b": digest}
    opaque = _opaque_state(engine)
    if opaque:
        path = folder / f"optimizer-rank-{rank:05d}.pt"
        buffer = io.BytesIO()
        torch.save(opaque, buffer)  # to memory first: torch turns a full disk into a RuntimeError
        with storage_errors(path), open(path, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        written[path.name] = {"bytes": path.stat().st_size, "blake2b": hash_file(path)}
    return written


def _weight_fragments(pieces: list[ParameterShard]) -> Iterator[Fragment]:
    for piece in pieces:
        yield Fragment(
            piece.name,
            piece.shape,
            piece.offset,
            piece.numel,
            partial(piece.of, piece.flat),
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


def _opaque_state(engine: Engine) -> dict[int, dict[str, torch.Tensor]]:
    """State that cannot be cut by parameter, by index of the flat parameter: kept as it is.

    8-bit moments with their block scales, and DeepSpeed's Muon momentum at stages 1 and 2, which
    covers all of a parameter on each rank that holds a part of it.
    """
    opaque: dict[int, dict[str, torch.Tensor]] = {}
    for index, flat in enumerate(flat_parameters(engine)):
        for key, value in engine.base_optimizer.state.get(flat, {}).items():
            tensor = isinstance(value, torch.Tensor) and value.dim() > 0
            if tensor and not _is_laid_out_like(value, flat):
                opaque.setdefault(index, {})[key] = value
    return opaque


def flat_parameters(engine: Engine) -> list[torch.Tensor]:
    """What the optimizer works on, in its order: whole parameters, or ZeRO's flat ones."""
    return [flat for group in engine.base_optimizer.param_groups for flat in group["params"]]


def _manifest(
    engine: Engine,
    step: int,
    state: dict[str, Any],
    files: dict[str, Any],
    started: float,
    origin: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "step": step,
        "time": time.time(),
        "seconds": round(time.monotonic() - started, 3),
        "world_size": engine.plan.world_size,
        "zero": engine.zero,
        "precision": engine.plan.precision,
        "trainable": sorted(
            name for name, p in engine.module.named_parameters() if p.requires_grad
        ),
        "scalars": _scalars(engine),
        "scaler": engine.scaler_state(),
        "state": state,
        "origin": dict(origin),
        "files": files,
    }


def _finish(temporary: Path, folder: Path, manifest: dict[str, Any]) -> None:
    write_json(temporary / "manifest.json", manifest)
    with storage_errors(folder):
        if folder.exists():  # a damaged one of the same step, which a resume passed over
            folder.rename(folder.with_name(f"{_TEMPORARY}old-{folder.name}"))
        temporary.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(folder.with_name(f"{_TEMPORARY}old-{folder.name}"), ignore_errors=True)


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


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put trained weights into a model not yet under DeepSpeed (it may be sharded by ZeRO-3).

    The engine is built on them afterwards; `load_optimizer` then restores the exact fp32 masters.
    """
    reader = checkpoint.weights()
    wrong = set(reader.keys()) ^ {name for name, p in model.named_parameters() if p.requires_grad}
    if wrong:
        raise StorageError(
            f"the checkpoint's parameters are not this model's: {', '.join(sorted(wrong)[:5])}",
            where=str(checkpoint.path),
            hint="the config of the run must be the one that wrote the checkpoint",
        )
    _put(reader, model)


def load_adapter(folder: str, model: nn.Module) -> None:
    """Put the weights of the adapter in `folder` into a model that has its adapters laid out so."""
    _put(AdapterReader(folder, model), model)


def _put(reader: FragmentReader | AdapterReader, model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name in reader.keys():  # noqa: SIM118 (a reader is not a mapping)
        parameter = parameters[name]
        if hasattr(parameter, "ds_id"):
            _load_sharded(parameter, reader, name)
        else:
            parameter.data.copy_(reader.tensor(name))


def _load_sharded(
    parameter: nn.Parameter, reader: FragmentReader | AdapterReader, name: str
) -> None:
    deepspeed = import_deepspeed(parameter.device.type)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(reader.tensor(name))


def load_optimizer(checkpoint: Checkpoint, engine: Engine) -> None:
    """Restore fp32 masters and optimizer state, whatever number of ranks or stage wrote them."""
    weights, optimizer = checkpoint.weights(), checkpoint.optimizer()
    manifest = checkpoint.manifest
    state = engine.base_optimizer.state
    keys_of: dict[str, list[str]] = {}
    for key in optimizer.keys():  # noqa: SIM118 (a reader is not a mapping)
        name, _, state_key = key.rpartition("|")
        keys_of.setdefault(name, []).append(state_key)
    for piece in engine.pieces():
        piece.of(piece.flat).copy_(weights.range(piece.name, piece.offset, piece.numel))
        if not keys_of.get(piece.name):
            continue
        values = state[piece.flat]
        for key in keys_of[piece.name]:
            if key not in values:
                values[key] = torch.zeros_like(piece.flat).detach()
            part = optimizer.range(f"{piece.name}|{key}", piece.offset, piece.numel)
            piece.of(values[key]).copy_(part)
        for key, scalar in manifest["scalars"].items():
            # torch's fused AdamW wants its step counter beside the parameter.
            device = piece.flat.device
            counter = torch.tensor(scalar, dtype=torch.float32, device=device)
            values[key] = scalar if isinstance(scalar, int) else counter
    _load_opaque(checkpoint, engine)
    engine.load_scaler_state(manifest["scaler"])


def _load_opaque(checkpoint: Checkpoint, engine: Engine) -> None:
    if not any(name.endswith(".pt") for name in checkpoint.manifest["files"]):
        return
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    world, stage = checkpoint.manifest["world_size"], checkpoint.manifest["zero"]
    if (world, stage) != (engine.plan.world_size, engine.zero):
        raise StorageError(
            f"this optimizer's state, written by {world} ranks at ZeRO-{stage}, cannot be read by"
            f" {engine.plan.world_size} ranks at ZeRO-{engine.zero}",
            where=str(checkpoint.path),
            hint="resume with the same number of ranks and the same stage",
        )
    source = 0 if stage == 0 else rank
    path = checkpoint.path / f"optimizer-rank-{source:05d}.pt"
    flats = flat_parameters(engine)
    for index, values in torch.load(path, map_location="cpu", weights_only=True).items():
        state = engine.base_optimizer.state[flats[index]]
        for key, value in values.items():
            state[key] = value.to(flats[index].device)
