"""Distillation beside a teacher is that of plain PyTorch for every ZeRO stage, number of ranks, cut
of the batch and packing, with all weights and with adapters."""

import json

import numpy as np
import pytest
import torch

from launcher.config.schema.distill import Divergence
from launcher.data.cache import TokenCache
from support import caches
from support.distillation import divergence
from support.models import make_llama
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

STEPS, LENGTH = 3, 64
#: Records are of equal length, four to a pack, so that packed and unpacked batches hold the same.
RECORDS, RECORD_LENGTH, PACKS, SEQUENCES = 48, 16, 4, 4
#: Different options, each with ways to compute it.
OPTIONS = {
    "forward": {"divergence": "forward", "alpha": 0.7, "temperature": 2.0},
    "reverse": {"divergence": "reverse", "alpha": 0.4},
    "jsd": {"divergence": "jsd", "beta": 0.3, "alpha": 1.0, "temperature": 1.5},
}
WAYS = {
    "forward": [{"zero": 0}, {"zero": 1, "micro": 1}, {"zero": 2}, {"zero": 3}],
    "reverse": [{"zero": 2, "micro": 2}, {"zero": 1, "packing": False}, {"zero": 3, "micro": 1}],
    "jsd": [{"zero": 0, "packing": False, "attention": "sdpa"}, {"zero": 3, "packing": False}],
}


def cases(folder, **changes):
    """Options' name and way -> case of the worker."""
    found = {}
    for name, options in OPTIONS.items():
        for way in WAYS[name]:
            packing, micro = way.get("packing", True), way.get("micro")
            times = 1 if packing else PACKS
            found[f"{name} {way}"] = {
                "name": f"{name} {way}",
                "config": {
                    "model": {
                        "name": str(folder / "model"),
                        "attention": way.get("attention", "auto"),
                    },
                    "objective": {"name": "distill", "teacher": str(folder / "teacher"), **options},
                    "data": {"max_length": LENGTH, "packing": packing, "shuffle": False},
                    "batch": {"sequences": SEQUENCES * times, "micro": micro and micro * times},
                    "train": {"steps": STEPS},
                    "engine": {"zero": way["zero"]},
                    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
                    **changes,
                },
            }
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with student, teacher, and prepared records that weigh differently."""
    folder = tmp_path_factory.mktemp("distill")
    make_llama(folder / "model", initializer_range=0.2)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "initializer_range": 0.3}
    make_llama(folder / "teacher", seed=1, vocab_size=320, **sizes)  # rows beyond the tokenizer
    rng = np.random.default_rng(0)
    records = [
        (
            rng.integers(7, 290, RECORD_LENGTH).tolist(),
            (rng.random(RECORD_LENGTH) < 0.6).astype(int).tolist(),
        )
        for _ in range(RECORDS)
    ]
    weights = rng.choice([0.25, 1.0, 3.0], RECORDS).tolist()
    caches.write(folder / "cache", records, max_length=LENGTH, weights=weights)
    return folder


def computed(folder, chosen, ranks):
    """Name -> losses and norms, of all cases in one start of the processes."""
    described = {"cache": str(folder / "cache"), "cases": list(chosen.values())}
    (folder / "cases.json").write_text(json.dumps(described))
    out = folder / f"out-{ranks}.json"
    worker = "tests/train/engine_worker.py"
    run_ranks(worker, str(folder / "cases.json"), str(out), ranks=ranks, timeout_s=280)
    return {result["name"]: result for result in json.loads(out.read_text())}


def plain_loop(folder, options):
    """The same training by torch alone: a document a forward, whole logits, its own gradients."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    tokens = len(AutoTokenizer.from_pretrained(folder / "model"))
    cache = TokenCache.open(folder / "cache")
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3
    )
    kind, beta = Divergence[options["divergence"]], options.get("beta", 0.5)
    share, heat = options["alpha"], options.get("temperature", 1.0)
    losses, norms = [], []
    for step in range(STEPS):
        total, weight = 0.0, 0.0
        for record in range(step * SEQUENCES * PACKS, (step + 1) * SEQUENCES * PACKS):
            own, flags = cache.record(record)
            ids = torch.from_numpy(own.astype(np.int64))
            learned = torch.from_numpy(flags[1:].astype(bool))
            logits = model(input_ids=ids[None]).logits[0, :-1][learned]
            with torch.no_grad():
                others = teacher(input_ids=ids[None]).logits[0, :-1][learned]
            data = torch.nn.functional.cross_entropy(logits, ids[1:][learned], reduction="sum")
            p, q = ((x[:, :tokens] / heat).softmax(-1) for x in (others, logits))
            far = divergence(kind, beta, p, q).sum()
            loss = ((1 - share) * data + share * heat**2 * far) * cache.weight(record)
            loss.backward()
            total += float(loss.detach())
            weight += int(learned.sum()) * cache.weight(record)
        for parameter in model.parameters():
            parameter.grad /= weight
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / weight)
    return {"losses": losses, "norms": norms}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cut_equals_the_plain_loop(place, ranks):
    found = computed(place, cases(place), ranks)
    expected = {name: plain_loop(place, options) for name, options in OPTIONS.items()}
    assert len(found) == sum(map(len, WAYS.values()))
    for name, got in found.items():
        for key in ("losses", "norms"):
            wanted = expected[name.partition(" ")[0]][key]
            np.testing.assert_allclose(got[key], wanted, rtol=1e-5, err_msg=f"{name}, {key}")


def test_adapters_learn_alike_in_every_cut(place):
    chosen = cases(place, peft={"name": "lora", "rank": 4})
    found = computed(place, chosen, 2)
    for kind in OPTIONS:
        first, *others = [got for name, got in found.items() if name.startswith(kind)]
        assert first["losses"][0] > first["losses"][-1] > 0
        for other in others:
            for key in ("losses", "norms"):
                np.testing.assert_allclose(other[key], first[key], rtol=1e-5, err_msg=kind)
