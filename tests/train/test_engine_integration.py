"""Same loss and gradient norm for every ZeRO stage, number of ranks, batch cut and packing."""

import json

import numpy as np
import pytest
import torch

from launcher.data.cache import TokenCache
from support import caches
from support.models import make_llama
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

STEPS = 3
LENGTH = 64
#: Records are of equal length, four to a pack, so that packed and unpacked batches hold the same.
RECORDS, RECORD_LENGTH, PACKS = 48, 16, 4
#: Two ranks have room for one of the two layers' activations in it.
SOME_GIB = 0.0003


def case(name, model, *, zero, packing=True, micro=None, sequences=4, **config):
    if not packing:
        sequences *= PACKS
        micro = micro and micro * PACKS
    return {
        "name": name,
        "config": {
            "model": {"name": str(model), "attention": config.pop("attention", "auto")},
            "data": {"max_length": LENGTH, "packing": packing, "shuffle": False},
            "batch": {"sequences": sequences, "micro": micro},
            "train": {"steps": STEPS},
            "engine": {"zero": zero, **config.pop("engine", {})},
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
            **config,
        },
    }


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    model = make_llama(folder / "model")
    rng = np.random.default_rng(0)
    records = [
        (
            rng.integers(7, 290, RECORD_LENGTH).tolist(),
            (rng.random(RECORD_LENGTH) < 0.6).astype(int).tolist(),
        )
        for _ in range(RECORDS)
    ]
    weights = rng.choice([0.25, 1.0, 3.0], RECORDS).tolist()
    caches.write(folder / "weighted", records, max_length=LENGTH, weights=weights)
    return folder, model, caches.write(folder / "cache", records, max_length=LENGTH)


def run_cases(folder, cases, ranks, cache="cache", timeout_s=280):
    (folder / "cases.json").write_text(json.dumps({"cache": str(folder / cache), "cases": cases}))
    out = folder / f"out-{ranks}.json"
    run_ranks(
        "tests/train/engine_worker.py",
        str(folder / "cases.json"),
        str(out),
        ranks=ranks,
        timeout_s=timeout_s,
    )
    return {result["name"]: result for result in json.loads(out.read_text())}


def plain_loop(model_folder, cache):
    """The same training, no DeepSpeed, packing or chunks: one document a forward, torch's AdamW."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3
    )
    losses, norms = [], []
    per_step = 4 * PACKS
    for step in range(STEPS):
        total, weight = 0.0, 0
        for record in range(step * per_step, (step + 1) * per_step):
            tokens, targets = cache.record(record)
            ids = torch.from_numpy(tokens.astype(np.int64))
            learned = torch.from_numpy(targets[1:].astype(bool))
            logits = model(input_ids=ids.unsqueeze(0)).logits[0, :-1][learned]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:][learned], reduction="sum")
            loss = loss * cache.weight(record)
            loss.backward()
            total += float(loss)
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


@pytest.fixture(scope="module")
def results(setup):
    """All cases of a number of ranks in one start of the processes."""
    folder, model, _ = setup
    cases = [case(f"zero{zero}", model, zero=zero) for zero in range(4)]
    cases += [
        case("micro 1", model, zero=2, micro=1),
        case("micro 2", model, zero=2, micro=2),
        case("micro 1 at stage 3", model, zero=3, micro=1),
        case("micro 1 at stage 0", model, zero=0, micro=1),
        case("overlapping at stage 1", model, zero=1, micro=1, engine={"overlap_comm": True}),
        case("overlapping at stage 2", model, zero=2, micro=1, engine={"overlap_comm": True}),
        case("unpacked", model, zero=2, packing=False),
        case("unpacked, padded", model, zero=1, packing=False, attention="sdpa"),
        case("offloaded optimizer", model, zero=2, engine={"offload_optimizer": True}),
        case(
            "offloaded parameters",
            model,
            zero=3,
            engine={"offload_optimizer": True, "offload_params": True},
        ),
        case("checkpointed activations", model, zero=2),
    ]
    cases[-1]["config"]["model"]["gradient_checkpointing"] = True
    for zero in (1, 3):
        cases.append(case(f"some layers recomputed at stage {zero}", model, zero=zero))
        cases[-1]["config"]["model"]["activation_gib"] = SOME_GIB
    return {ranks: run_cases(folder, cases, ranks) for ranks in (1, 2)}


def test_every_cut_equals_the_plain_loop(setup, results):
    _, model, cache = setup
    expected = plain_loop(model, cache)
    for ranks, cases in results.items():
        for name, got in cases.items():
            for key in ("losses", "norms"):
                np.testing.assert_allclose(
                    got[key], expected[key], rtol=1e-5, err_msg=f"{name}, {ranks} ranks, {key}"
                )


@pytest.mark.parametrize("size", [2, 4])
def test_groups_that_keep_all_parameters_equal_the_plain_loop(setup, size):
    folder, model, cache = setup
    grouped = case("groups", model, zero=3, micro=1, engine={"secondary_partition": size})
    expected = plain_loop(model, cache)
    (got,) = run_cases(folder, [grouped], 4).values()
    for key in ("losses", "norms"):
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("ranks", [1, 2])
def test_records_count_with_their_weight_in_every_cut(setup, ranks):
    folder, model, _ = setup
    cases = [
        case("zero1", model, zero=1),
        case("zero3", model, zero=3),
        case("micro 1", model, zero=2, micro=1),
        case("unpacked", model, zero=2, packing=False, micro=1),
    ]
    expected = plain_loop(model, TokenCache.open(folder / "weighted"))
    for name, got in run_cases(folder, cases, ranks, "weighted").items():
        for key in ("losses", "norms"):
            np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.parametrize("shared", [2, 4])
def test_ranks_that_share_rows_equal_the_plain_loop(setup, shared):
    """Documents of 16 tokens in rows of 64, of which a rank has 32 or 16, or 8 of a document alone
    in its row; one head of keys for two ranks, and one for all four."""
    folder, model, cache = setup
    wide = make_llama(
        folder / f"wide-{shared}", num_attention_heads=8, num_key_value_heads=shared // 2
    )
    engine = {"sequence_parallel": shared}
    cases = [case(f"zero{zero}", model, zero=zero, engine=engine, micro=1) for zero in range(4)]
    cases += [
        case("unpacked", model, zero=2, packing=False, engine=engine, micro=1),
        case("checkpointed at stage 3", model, zero=3, engine=engine),
        case("wide", wide, zero=2, engine=engine),
    ]
    cases[-2]["config"]["model"]["gradient_checkpointing"] = True
    lora = {"peft": {"name": "lora", "rank": 4}}
    cases += [
        case("lora", model, zero=2, **lora),
        case("lora, shared", model, zero=2, engine=engine, **lora),
    ]
    for ranks in {shared, 4}:
        got = run_cases(folder, cases, ranks)
        plain = {"wide": plain_loop(wide, cache), "lora, shared": got.pop("lora")}
        expected = plain_loop(model, cache)
        for name, own in got.items():
            for key in ("losses", "norms"):
                np.testing.assert_allclose(
                    own[key], plain.get(name, expected)[key], rtol=1e-5, err_msg=f"{name} {key}"
                )


def test_sums_of_bf16_gradients_do_not_depend_on_the_cut(setup):
    """A row gives the same 16-bit gradient wherever it is computed; in 16 bits their sum would
    change in the third digit."""
    folder, model, _ = setup
    cases = [
        case(f"zero{zero}", model, zero=zero, micro=1, engine={"precision": "bf16"})
        for zero in (1, 2, 3)
    ]
    found = {ranks: run_cases(folder, cases, ranks) for ranks in (1, 2)}
    wanted = found[1]["zero1"]["norms"][0]
    for ranks, results in found.items():
        for name, got in results.items():
            np.testing.assert_allclose(
                got["norms"][0], wanted, rtol=1e-5, err_msg=f"{name} {ranks}"
            )


def test_lora_bf16_and_muon_run_at_every_stage_with_equal_losses(setup):
    folder, model, _ = setup
    lora = {"peft": {"name": "lora", "rank": 4}}
    cases = [case(f"lora {zero}", model, zero=zero, **lora) for zero in range(4)]
    cases += [
        case(f"bf16 {zero}", model, zero=zero, engine={"precision": "bf16"}) for zero in range(4)
    ]
    muon = {"optim": {"name": "muon", "lr": 0.01, "adam_lr": 1e-3}}
    cases += [{**case(f"muon {zero}", model, zero=zero), "x": 0} for zero in (1, 2, 3)]
    for entry in cases[-3:]:
        entry["config"] |= muon
    found = run_cases(folder, cases, 2)
    for kind, tolerance in (("lora", 1e-5), ("bf16", 1e-2), ("muon", 2e-2)):
        group = [r["losses"] for name, r in found.items() if name.startswith(kind)]
        for losses in group[1:]:
            np.testing.assert_allclose(losses, group[0], rtol=tolerance, err_msg=kind)
        assert group[0][-1] < group[0][0] + 1.0


@pytest.mark.timeout(900)  # code is made on the first layer of each kind
def test_compiled_layers_train_as_plain_ones_do_at_every_stage(setup):
    """All layers share a graph, for rows of one to four documents; hooks stay outside of it."""
    folder, model, cache = setup
    lora = {"peft": {"name": "lora", "rank": 4}}
    cases = [
        case("zero1", model, zero=1),
        case("micro 1", model, zero=2, micro=1),
        case("unpacked", model, zero=0, packing=False, micro=1),
        case("checkpointed at stage 3", model, zero=3),
        case("lora 2", model, zero=2, **lora),
        case("lora 3", model, zero=3, **lora),
    ]
    cases[3]["config"]["model"]["gradient_checkpointing"] = True
    for entry in cases:
        entry["config"]["model"]["compile"] = True
    cases.append(case("plain lora", model, zero=2, **lora))
    results = run_cases(folder, cases, 2, timeout_s=900)
    plain = {"lora": results.pop("plain lora"), "all": plain_loop(model, cache)}
    assert results["zero1"]["graphs"] == 1  # others may share it
    for name, got in results.items():
        kind = "lora" if name.startswith("lora") else "all"
        for key in ("losses", "norms"):
            np.testing.assert_allclose(
                got[key], plain[kind][key], rtol=1e-5, err_msg=f"{name} {key}"
            )
        assert not got["breaks"], name
        # What enters the first layer needs no gradient where the embeddings are frozen.
        assert got["graphs"] <= (2 if kind == "lora" else 1), name
