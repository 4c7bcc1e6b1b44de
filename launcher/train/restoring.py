"""The checkpoint to go on from, agreed by all ranks, and back in a model and its optimizer.

It may have been written by another number of ranks, at another stage. Each rank reads what it
keeps, some of it at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from launcher.config.derive.tensors import full_shape
from launcher.core.errors import Problem, StorageError
from launcher.core.files import storage_error
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.distributed.collectives import gather_objects
from launcher.model.adapter import AdapterReader
from launcher.model.checkpoint import Checkpoint, checkpoints
from launcher.model.fragments import FragmentReader, read_all
from launcher.train.engine import Engine
from launcher.train.zero import import_deepspeed


def newest_valid(
    run: RunDir, ranks: Ranks, warn: Callable[[str], None], step: int | None = None
) -> Checkpoint | None:
    """The newest whole checkpoint (or that of `step`), the same on all ranks, each of which looks
    at a share of its files; damaged ones are skipped with a warning.

    Raises `StorageError` on all ranks if one of them cannot read a file.
    """
    present = None
    if ranks.is_main:
        found = [c for c in reversed(checkpoints(run)) if step is None or c.step == step]
        present = [(c.path.name, c.manifest) for c in found]
    for name, manifest in gather_objects(present)[0]:
        candidate = Checkpoint(run.checkpoints / name, manifest)
        answers = gather_objects(_damage(candidate, ranks))
        if problems := [problem for _, found in answers for problem in found]:
            raise StorageError(problems)
        damage = min((damage for damage, _ in answers if damage is not None), default=None)
        if damage is None:
            return candidate
        warn(candidate.passed_over(damage))
    return None


def _damage(
    candidate: Checkpoint, ranks: Ranks
) -> tuple[tuple[int, str] | None, tuple[Problem, ...]]:
    """What this rank finds wrong with its share, or why it cannot tell."""
    try:
        return candidate.damage(ranks.rank, ranks.world_size), ()
    except OSError as error:
        known = storage_error(error, candidate.path)
        place, hint = f"{candidate.path} on {ranks.host}", "resume the run where it can be read"
        return None, known.problems if known else (Problem(place, str(error), hint),)


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put trained weights into a model (it may be sharded by ZeRO-3).

    Where the engine is built on it afterwards, `load_optimizer` then restores the exact fp32
    masters.
    """
    reader = checkpoint.weights()
    saved = {(name, reader.shape(name)) for name in reader.keys()}  # noqa: SIM118 (no mapping)
    trained = {
        (name, tuple(full_shape(p))) for name, p in model.named_parameters() if p.requires_grad
    }
    if wrong := {name for name, _ in saved ^ trained}:
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
    reads: list[Callable[[], object]] = []
    for name in reader.keys():  # noqa: SIM118 (a reader is not a mapping)
        parameter: Any = parameters[name]
        if getattr(parameter, "ds_secondary_tensor", None) is not None:  # hpZ's, of another cut
            _put_gathered(reader, name, parameter)
        else:
            reads += _reads(reader, name, parameter)
    read_all(reads)


def _put_gathered(reader: FragmentReader | AdapterReader, name: str, parameter: Any) -> None:
    deepspeed = import_deepspeed(parameter.device.type)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(reader.tensor(name))


def _reads(
    reader: FragmentReader | AdapterReader, name: str, parameter: Any
) -> Iterator[Callable[[], object]]:
    """What fills a parameter, and this rank's part of it where ZeRO-3 has cut it."""
    if hasattr(parameter, "ds_id"):
        place = parameter.ds_tensor.detach()
        offset = place.numel() * torch.distributed.get_rank(parameter.ds_process_group)
        valid = min(place.numel(), parameter.ds_numel - offset)  # the last ranks' parts are padded
        if valid > 0:
            yield from reader.reads(name, offset, place.narrow(0, 0, valid))
    whole = parameter.data
    if not whole.is_contiguous():
        yield lambda: whole.copy_(reader.tensor(name))
    elif whole.numel():  # nothing, while it lies on all ranks in parts
        yield from reader.reads(name, 0, whole.view(-1))


def load_optimizer(checkpoint: Checkpoint, engine: Engine) -> None:
    """Restore fp32 masters and optimizer state, whatever number of ranks or stage wrote them."""
    weights, optimizer = checkpoint.weights(), checkpoint.optimizer()
    manifest = checkpoint.manifest
    state = engine.base_optimizer.state
    keys_of: dict[str, list[str]] = {}
    for key in optimizer.keys():  # noqa: SIM118 (a reader is not a mapping)
        name, _, state_key = key.rpartition("|")
        keys_of.setdefault(name, []).append(state_key)
    reads: list[Callable[[], object]] = []
    for piece in engine.pieces():
        reads += weights.reads(piece.name, piece.offset, piece.of(piece.flat))
        if not keys_of.get(piece.name):
            continue
        values = state[piece.flat]
        for key in keys_of[piece.name]:
            if key not in values:
                values[key] = torch.zeros_like(piece.flat).detach()
            reads += optimizer.reads(f"{piece.name}|{key}", piece.offset, piece.of(values[key]))
        for key, scalar in manifest["scalars"].items():
            # torch's fused AdamW wants its step counter beside the parameter.
            device = piece.flat.device
            counter = torch.tensor(scalar, dtype=torch.float32, device=device)
            values[key] = scalar if isinstance(scalar, int) else counter
    read_all(reads)
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
    flats = engine.flat_parameters()
    for index, values in torch.load(path, map_location="cpu", weights_only=True).items():
        state = engine.base_optimizer.state[flats[index]]
        for key, value in values.items():
            is_tensor = isinstance(value, torch.Tensor)
            state[key] = value.to(flats[index].device) if is_tensor else value
