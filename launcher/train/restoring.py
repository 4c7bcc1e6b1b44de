"""A checkpoint back in a model and its optimizer, whatever number of ranks or stage wrote it."""

from __future__ import annotations

import torch
from torch import nn

from launcher.core.errors import StorageError
from launcher.model.adapter import AdapterReader
from launcher.model.checkpoint import Checkpoint
from launcher.model.fragments import FragmentReader
from launcher.train.engine import Engine
from launcher.train.zero import import_deepspeed


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
    flats = engine.flat_parameters()
    for index, values in torch.load(path, map_location="cpu", weights_only=True).items():
        state = engine.base_optimizer.state[flats[index]]
        for key, value in values.items():
            is_tensor = isinstance(value, torch.Tensor)
            state[key] = value.to(flats[index].device) if is_tensor else value
