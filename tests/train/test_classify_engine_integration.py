"""A classifier's loss and gradient norm are those of a plain loop, however ranks cut the batch."""

import json

import numpy as np
import pytest
import torch

from launcher.config.schema import variants
from launcher.data.cache import TokenCache
from launcher.model.classifier import open_classifier
from support import caches
from support.configs import make_config
from support.families import make_family
from support.models import make_encoder, make_llama
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

STEPS, RECORDS, LENGTH, PER_STEP = 3, 48, 16, 16
NAMES = ("left", "right", "up")


def case(name, model, cache, *, zero, packing=True, layout="", **objective):
    return {
        "layout": layout,
        "name": name,
        "cache": str(cache),
        "config": {
            "model": {"name": str(model)},
            "data": {"max_length": 64 if packing else LENGTH, "packing": packing, "shuffle": False},
            "batch": {"sequences": PER_STEP // 4 if packing else PER_STEP},
            "train": {"steps": STEPS},
            "objective": {"name": "classify", **objective},
            "engine": {"zero": zero},
            "optim": {"name": "adamw", "lr": 1e-3},
        },
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    llama = make_llama(folder / "llama")
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = make_encoder(folder / "bert", **off)
    rng = np.random.default_rng(0)
    tokens = rng.integers(7, 200, (RECORDS, LENGTH)).tolist()
    records = [(own, [0] * (LENGTH - 1) + [1]) for own in tokens]
    weights = rng.choice([0.25, 1.0, 3.0], RECORDS).tolist()
    single = [[NAMES[i]] for i in rng.choice(3, RECORDS, p=[0.6, 0.3, 0.1])]
    several = [[name for name in NAMES if rng.random() < 0.4] for _ in range(RECORDS)]
    one, many = folder / "one", folder / "many"
    caches.write(one, records, max_length=64, weights=weights, labels=single)
    caches.write(many, records, max_length=64, labels=several)
    # Padding would change the losses of FNet: its texts are computed by length.
    fnet, uneven = make_family("fnet", folder / "fnet", "classes"), folder / "uneven"
    cut = [(own[-n:], flags[-n:]) for (own, flags), n in zip(records, 24 * [9, 16], strict=True)]
    caches.write(uneven, cut, max_length=64, weights=weights, labels=single)
    made = [case(f"zero{zero}", llama, one, zero=zero) for zero in (2, 3)]
    made += [
        case("balanced", llama, one, zero=1, class_weights="balanced"),
        case("unpacked", llama, one, zero=0, packing=False),
        case("multi-label", llama, many, zero=2, multi_label=True, class_weights="balanced"),
        case("encoder", bert, one, zero=3, packing=False),
        case("equal lengths", fnet, uneven, zero=3, packing=False, layout="equal lengths"),
    ]
    return folder, made


def plain_loop(made):
    """The same training without DeepSpeed or packing: one text a forward, torch's own losses."""
    config = make_config(**made["config"])
    cache = TokenCache.open(made["cache"])
    objective = variants.objective(config.objective)
    objective.settle(config, cache, None)
    classes = objective.classes
    model, fresh = open_classifier(made["config"]["model"]["name"], classes.head(0))
    assert fresh[-1] in ("score", "classifier")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    class_weights = torch.tensor(classes.weights or [1.0] * len(NAMES))
    losses, norms = [], []
    for step in range(STEPS):
        total, weight = 0.0, 0.0
        for record in range(step * PER_STEP, (step + 1) * PER_STEP):
            ids = torch.from_numpy(cache.record(record)[0].astype(np.int64))
            logits = model(input_ids=ids.unsqueeze(0)).logits
            applying = [classes.names.index(name) for name in cache.value("label", record)]
            own = 1.0 if cache.weights is None else float(cache.weights[record])
            if classes.multi_label:
                truth = torch.zeros(1, len(NAMES))
                truth[0, applying] = 1
                criterion = torch.nn.BCEWithLogitsLoss(pos_weight=class_weights)
                loss = own * criterion(logits, truth)
            else:
                own *= float(class_weights[applying[0]])
                loss = own * torch.nn.functional.cross_entropy(logits, torch.tensor(applying))
            loss.backward()
            total, weight = total + float(loss.detach()), weight + own
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= weight
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / weight)
    return {"losses": losses, "norms": norms}


def test_every_cut_equals_the_plain_loop(cases):
    folder, made = cases
    (folder / "cases.json").write_text(json.dumps({"cache": "", "cases": made}))
    out = folder / "out.json"
    worker = "tests/train/engine_worker.py"
    run_ranks(worker, str(folder / "cases.json"), str(out), ranks=2, timeout_s=280)
    for asked, got in zip(made, json.loads(out.read_text()), strict=True):
        expected = plain_loop(asked)
        for key in ("losses", "norms"):
            message = f"{asked['name']}, {key}"
            np.testing.assert_allclose(got[key], expected[key], rtol=2e-5, err_msg=message)
