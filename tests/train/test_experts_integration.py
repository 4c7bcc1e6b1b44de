"""Models with experts: loss, gradient and load are those of plain PyTorch for every cut."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.config.schema import LoraConfig
from launcher.peft.lora import apply
from support import caches
from support.adapted import family
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

NAMES = ("qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v3", "mixtral")
#: Those for which transformers has the loss that balances experts.
BALANCED = ("qwen3_moe", "gpt_oss", "mixtral")
AUX = 0.5
LENGTH, PACKS = 32, 4
#: Ranks -> cuts: ZeRO stage, micro-batch, and what else.
CUTS = {
    1: {"whole": (0, 4, {}), "two of two": (0, 2, {}), "recomputed": (0, 2, {"recompute": True})},
    2: {
        "stage 2": (2, 2, {}),
        "stage 2, two micro-batches": (2, 1, {}),
        "stage 3": (3, 2, {}),
        "stage 3, two micro-batches": (3, 1, {}),
        "stage 3, recomputed": (3, 1, {"recompute": True}),
        "stage 1, unpacked": (1, 2, {"packing": False}),
        "stage 2, adapters": (2, 1, {"adapters": True}),
        "stage 3, adapters": (3, 2, {"adapters": True}),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    rng = np.random.default_rng(0)
    records = [
        (rng.integers(7, 290, length).tolist(), (rng.random(length) < 0.6).astype(int).tolist())
        for length in (8, 8, 16) * PACKS
    ]
    caches.write(folder / "cache", records, max_length=LENGTH)
    for name in NAMES:
        torch.manual_seed(0)
        made = family(name)
        made.mlp_only_layers = []  # both layers of Qwen3-MoE choose
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.5 if "gate.weight" in key else 0.2)
        model.save_pretrained(folder / name)
    return folder


def config(folder, name, zero, micro, recompute=False, packing=True, adapters=False):
    whole = 1 if packing else 3
    return {
        "model": {"name": str(folder / name), "gradient_checkpointing": recompute},
        "data": {"max_length": LENGTH, "packing": packing, "shuffle": False},
        "batch": {"sequences": PACKS * whole, "micro": micro * whole},
        "train": {"steps": 1, "router_aux": AUX if name in BALANCED else None},
        "engine": {"zero": zero},
        "peft": {"name": "lora", "rank": 2} if adapters else {"name": "none"},
        "optim": {"name": "adamw", "lr": 1e-3},
    }


@pytest.fixture(scope="module")
def results(folder):
    """Every cut of every model, in one start of the processes for a number of ranks."""
    found = {}
    for ranks, cuts in CUTS.items():
        cases = [
            {"name": f"{name}, {ranks} ranks, {cut}", "config": config(folder, name, *how, **more)}
            for name in NAMES
            for cut, (*how, more) in cuts.items()
        ]
        path, out = folder / "cases.json", folder / f"out-{ranks}.json"
        where = {"cache": str(folder / "cache"), "folder": str(folder / "runs")}
        path.write_text(json.dumps({**where, "cases": cases}))
        run_ranks("tests/train/experts_worker.py", str(path), str(out), ranks=ranks, timeout_s=400)
        for result in json.loads(out.read_text()):
            result["gradients"] = torch.load(folder / "runs" / result["name"] / "gradients.pt")
            found[result["name"]] = result
    return found


def plain(folder, name, adapters):
    """The same global batch with transformers' own model and loss, one document a forward."""
    from launcher.data.cache import TokenCache

    cache = TokenCache.open(folder / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager")
    inner = model
    if adapters:
        torch.manual_seed(0)
        model = apply(model, LoraConfig(rank=2))
    total, weight, routed = 0.0, 0, []
    for record in range(len(cache)):
        tokens, targets = cache.record(record)
        ids = torch.from_numpy(tokens.astype(np.int64))
        learned = torch.from_numpy(targets[1:].astype(bool))
        # The loss of the experts is handed no labels: it is a mean over the batch, not over them.
        out = model(input_ids=ids[None], output_router_logits=True)
        logits = out.logits[0, :-1][learned]
        total += torch.nn.functional.cross_entropy(logits, ids[1:][learned], reduction="sum")
        weight += int(learned.sum())
        routed.append([one.reshape(-1, one.shape[-1]) for one in out.router_logits])
    layers = tuple(torch.cat(parts) for parts in zip(*routed, strict=True))
    loss, aux = total / weight, None
    if name in BALANCED:
        modelling = sys.modules[type(inner).__module__]
        aux = modelling.load_balancing_loss_func(layers, layers[0].shape[-1], 2)
    (loss if aux is None else loss + AUX * aux).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    return float(loss), None if aux is None else float(aux), gradients


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "adapters"])
@pytest.mark.parametrize("name", NAMES)
def test_every_cut_equals_plain_pytorch(folder, results, name, adapters):
    loss, aux, gradients = plain(folder, name, adapters)
    mine = {
        key: found
        for key, found in results.items()
        if key.startswith(f"{name}, ") and key.endswith("adapters") == adapters
    }
    assert {found["rows"] for found in mine.values()} == {1, 2}
    first = next(iter(mine.values()))
    for key, found in mine.items():
        assert found["loss"] == pytest.approx(loss, abs=1e-5), key
        if aux is not None:
            assert found["aux"] == pytest.approx(aux, abs=1e-5), key
        np.testing.assert_allclose(found["shares"], first["shares"], atol=1e-9, err_msg=key)
        assert found["entropy"] == pytest.approx(first["entropy"], abs=1e-5), key
        assert found["gradients"].keys() == gradients.keys()
        for parameter, expected in gradients.items():
            got = found["gradients"][parameter]
            if expected is None:
                assert got is None or not got.any(), f"{key}: {parameter}"
                continue
            off = float((got - expected).abs().max())
            assert off < 1e-5 * max(1.0, float(expected.abs().max())), f"{key}: {parameter}"
