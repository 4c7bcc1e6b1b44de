"""A resumed run equals one never stopped, bit for bit; and it goes on at other numbers of ranks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.model.checkpoint import Checkpoint
from launcher.model.export import Kind, Trained, export
from launcher.model.verify import verify
from support import caches
from support.configs import make_config
from support.models import make_llama
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

STEPS = 6


def case(name, model, zero, **config):
    return {
        "name": name,
        "config": {
            "model": {"name": str(model)},
            "data": {"max_length": 64},
            "batch": {"sequences": 4, "micro": 1},
            "train": {"steps": STEPS},
            "engine": {"zero": zero, **config.pop("engine", {})},
            "optim": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.01},
            **config,
        },
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with prepared data, and a model."""
    folder = tmp_path_factory.mktemp("resume")
    model = make_llama(folder / "model")
    rng = np.random.default_rng(0)
    records = [
        (rng.integers(7, 290, length).tolist(), (rng.random(length) < 0.6).astype(int).tolist())
        for length in rng.integers(5, 60, 90)
    ]
    caches.write(folder / "cache", records, max_length=64)
    return folder, model


@pytest.fixture(scope="module")
def setup(place):
    folder, model = place
    lora = {"peft": {"name": "lora", "rank": 4, "dropout": 0.1}}
    cases = [case(f"full-{zero}", model, zero) for zero in range(4)]
    cases += [case(f"lora-{zero}", model, zero, **lora) for zero in range(4)]
    cases += [case(f"bf16-{zero}", model, zero, engine={"precision": "bf16"}) for zero in range(4)]
    tied = make_llama(folder / "tied", tie_word_embeddings=True)
    saved = {"peft": {"name": "lora", "rank": 4, "modules_to_save": ["embed_tokens", "lm_head"]}}
    cases += [case(f"tied-{zero}", tied, zero) for zero in (2, 3)]
    cases += [case(f"saved-{zero}", model, zero, **saved) for zero in (2, 3)]
    cases.append(case("muon", model, 2, optim={"name": "muon", "lr": 0.01, "adam_lr": 1e-3}))
    cases.append(case("offload", model, 2, engine={"offload_optimizer": True}))
    return folder, model, run_cases(folder, cases, 2)


def run_cases(folder, cases, ranks, timeout_s=280):
    description = {"cache": str(folder / "cache"), "folder": str(folder / "runs"), "cases": cases}
    (folder / "cases.json").write_text(json.dumps(description))
    out = folder / "out.json"
    run_ranks(
        "tests/train/resume_worker.py",
        str(folder / "cases.json"),
        str(out),
        ranks=ranks,
        timeout_s=timeout_s,
    )
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.mark.parametrize(
    "name",
    [f"{kind}-{zero}" for kind in ("full", "lora", "bf16") for zero in range(4)]
    + [f"{kind}-{zero}" for kind in ("tied", "saved") for zero in (2, 3)]
    + ["muon", "offload"],
)
def test_resume_is_bit_equal(setup, name):
    _, _, results = setup
    for rank in results[name]["ranks"]:
        assert rank["again"] == rank["rest"]
        assert rank["resumed"] == rank["straight"]
        assert rank["rest"] != rank["first"]


@pytest.mark.timeout(600)  # code is made
def test_compiled_layers_resume_bit_equal_with_dropout(tmp_path):
    model = make_llama(tmp_path / "model")
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 90)
    records = [(rng.integers(7, 290, n).tolist(), [0] + [1] * (n - 1)) for n in lengths]
    caches.write(tmp_path / "cache", records, max_length=64)
    compiled = case("compiled", model, 3, peft={"name": "lora", "rank": 4, "dropout": 0.1})
    compiled["config"]["model"]["compile"] = True
    for rank in run_cases(tmp_path, [compiled], 2, timeout_s=600)["compiled"]["ranks"]:
        assert rank["resumed"] == rank["straight"]
        assert rank["again"] == rank["rest"] != rank["first"]


@pytest.mark.parametrize(
    "name", [f"{kind}-{zero}" for kind in ("full", "lora", "bf16") for zero in range(4)]
)
def test_the_weights_of_a_checkpoint_are_put_back_into_the_engine(setup, name):
    _, _, results = setup
    for rank in results[name]["ranks"]:
        assert rank["back"] == rank["before"]
        assert rank["after"] != rank["before"]


@pytest.fixture(scope="module")
def alone(setup):
    """The same on one rank, which needs no DeepSpeed."""
    folder, model, _ = setup
    options = {
        "full": {},
        "lora": {"peft": {"name": "lora", "rank": 4, "dropout": 0.1}},
        "bf16": {"engine": {"precision": "bf16"}},
    }
    cases = [case(f"alone-{name}", model, 2, **more) for name, more in options.items()]
    return run_cases(folder, cases, 1)


@pytest.mark.parametrize("kind", ["full", "lora", "bf16"])
def test_one_rank_resumes_to_the_bit_and_goes_on_on_two(setup, alone, kind):
    folder, model, results = setup
    found = alone[f"alone-{kind}"]
    (rank,) = found["ranks"]
    assert rank["again"] == rank["rest"]
    assert rank["resumed"] == rank["straight"]
    assert rank["back"] == rank["before"] != rank["after"]
    if kind == "lora":  # dropout draws other masks on other ranks
        return
    entry = case(f"{kind} from one rank", model, 3)
    if kind == "bf16":
        entry["config"]["engine"]["precision"] = "bf16"
    entry["from"] = found["folder"]
    (onward,) = run_cases(folder, [entry], 2).values()
    two = np.sum([rank["rest"] for rank in results[f"{kind}-3"]["ranks"]], axis=0)
    np.testing.assert_allclose(rank["rest"], two, rtol=1e-4 if kind == "full" else 1e-2)
    assert len(onward["losses"]) == STEPS // 2


def test_moments_in_8_bit_and_their_counter_go_on(setup):
    pytest.importorskip("bitsandbytes")
    folder, model, _ = setup
    eight = {"optim": {"name": "adamw8bit", "lr": 1e-2}}
    found = run_cases(folder, [case(f"8bit-{zero}", model, zero, **eight) for zero in (1, 2, 3)], 2)
    for result in found.values():
        for rank in result["ranks"]:
            assert rank["again"] == rank["rest"]
            assert rank["resumed"] == rank["straight"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_products_in_fp8_train_as_those_in_bf16_resume_and_export_a_plain_model(place, ranks):
    pytest.importorskip("torchao")
    folder, model = place
    cases = [
        case(f"fp8-{fp8}-{zero}-{ranks}", model, zero, engine={"precision": "bf16"})
        for fp8 in (False, True)
        for zero in ((0,) if ranks == 1 else (1, 2))
    ]
    for entry in cases:
        entry["config"]["model"]["fp8"] = "True" in entry["name"]
    found = run_cases(folder, cases, ranks)
    for name, result in found.items():
        plain = found[name.replace("True", "False")]
        checkpoint = Checkpoint(Path(result["folder"]) / f"checkpoints/step-{STEPS // 2:08d}", {})
        weights = checkpoint.weights()
        assert set(weights.keys()) == {key for key, _ in load(model).named_parameters()}
        for rank, other in zip(result["ranks"], plain["ranks"], strict=True):
            assert rank["resumed"] == rank["straight"]
            assert rank["again"] == rank["rest"]
            assert (rank["straight"] == other["straight"]) is (result is plain)
            losses, expected = (r["first"] + r["rest"] for r in (rank, other))
            np.testing.assert_allclose(losses, expected, rtol=0.03)
        config = make_config(model={"name": str(model), "fp8": True})
        trained = Trained(config, weights, AutoTokenizer.from_pretrained(model), torch.bfloat16)
        out = folder / "exports" / name
        export(trained, Kind.full, out, lambda folder, trained=trained: verify(trained, folder))
        for key, parameter in load(out).named_parameters():
            assert torch.equal(parameter, weights.tensor(key).to(torch.bfloat16)), key


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_save_that_fails_behind_training_is_told_on_all_ranks(setup, rank):
    folder, model, _ = setup
    failing = {**case(f"fails-{rank}", model, 2), "full_disk": rank}
    (found,) = run_cases(folder, [failing], 2).values()
    assert found["steps"][0] == found["steps"][1] < 50
    assert found["heard"][0] == found["heard"][1]
    assert f"rank-{rank:05d}.safetensors: File too large" in found["heard"][0]
    assert "HINT: a limit keeps files this small" in found["heard"][0]
    kept = sorted(
        path.name for path in (folder / "runs" / failing["name"] / "checkpoints").iterdir()
    )
    assert kept == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_files_are_the_same_where_training_waits_for_them(setup, zero):
    folder, model, results = setup
    waiting = {**case(f"waits-{zero}", model, zero), "background": False}
    (found,) = run_cases(folder, [waiting], 2).values()

    def files(result):
        name = f"checkpoints/step-{STEPS // 2:08d}/manifest.json"
        return json.loads((Path(result["folder"]) / name).read_text())["files"]

    assert files(found) == files(results[f"full-{zero}"])


def test_groups_that_keep_all_parameters_go_on_from_it(setup):
    folder, model, results = setup
    entry = case("groups", model, 3, engine={"secondary_partition": 2})
    entry["from"] = results["full-3"]["folder"]
    (found,) = run_cases(folder, [entry], 2).values()
    assert found["losses"] == results["full-3"]["ranks"][0]["rest"]


def test_frozen_base_is_not_saved(setup):
    _, _, results = setup
    assert results["lora-2"]["bytes"] < results["full-2"]["bytes"] / 3


def test_other_ranks_and_other_stages_go_on_from_it(setup):
    folder, model, results = setup
    cases = []
    for kind, options in (("full", {}), ("lora", {"peft": {"name": "lora", "rank": 4}})):
        for source, target in ((2, 2), (2, 3), (3, 0), (0, 1)):
            entry = case(f"{kind} {source} to {target}", model, target, **options)
            entry["from"] = results[f"{kind}-{source}"]["folder"]
            cases.append(entry)
    found = run_cases(folder, cases, 1)
    assert not [name for name, result in found.items() if result["misplaced"]]
    for zero in (0, 2, 3):
        two_ranks = np.sum([rank["rest"] for rank in results[f"full-{zero}"]["ranks"]], axis=0)
        for name, result in found.items():
            if name.startswith(f"full {zero}"):
                np.testing.assert_allclose(result["losses"], two_ranks, rtol=1e-4, err_msg=name)
    lora = [result["losses"] for name, result in found.items() if name.startswith("lora")]
    for losses in lora[1:]:
        np.testing.assert_allclose(losses, lora[0], rtol=1e-2)


def test_each_of_three_ranks_reads_its_part_where_parts_are_padded(setup):
    folder, model, results = setup
    cases = []
    for kind, options in (("full", {}), ("lora", {"peft": {"name": "lora", "rank": 4}})):
        entry = case(f"{kind} at 3", model, 3, batch={"sequences": 3, "micro": 1}, **options)
        entry["from"] = results[f"{kind}-2"]["folder"]
        cases.append(entry)
    found = run_cases(folder, cases, 3)
    assert [result["misplaced"] for result in found.values()] == [[], []]


def test_parts_that_a_node_keeps_beside_are_read_too(setup):
    folder, model, results = setup
    hpz = {"zero_optimization": {"zero_hpz_partition_size": 2}}
    entry = case("hpz", model, 3, engine={"extra": hpz})
    (found,) = run_cases(folder, [{**entry, "from": results["full-3"]["folder"]}], 2).values()
    assert not found["misplaced"]
    np.testing.assert_allclose(found["losses"], results["full-3"]["ranks"][0]["rest"], rtol=1e-5)


def test_all_ranks_take_the_same_checkpoint(place):
    folder, model = place
    (made,) = run_cases(folder, [case("chosen", model, 2)], 2).values()
    runs = Path(made["folder"])
    (whole,) = (runs / "checkpoints").glob("step-*")
    cases = [{"name": "whole", "choose": str(runs)}]
    cases.append({"name": "closed", "choose": str(runs), "cannot_open": 1})
    names = sorted(json.loads((whole / "manifest.json").read_text())["files"])
    for number, name in enumerate(names):  # each lies in the share of one rank
        spoilt = folder / f"spoilt-{number}"
        shutil.copytree(runs, spoilt)
        manifest = json.loads((whole / "manifest.json").read_text())
        newer = spoilt / "checkpoints" / "step-00000009"
        shutil.copytree(whole, newer)
        (newer / "manifest.json").write_text(json.dumps({**manifest, "step": 9}))
        content = bytearray((newer / name).read_bytes())
        content[-40] ^= 1
        (newer / name).write_bytes(content)
        cases.append({"name": name, "choose": str(spoilt)})
    found = run_cases(folder, cases, 2)
    step = STEPS // 2
    assert found["whole"]["ranks"] == [[step, []]] * 2
    (one, _), (other, _) = found["closed"]["ranks"]
    assert one == other
    assert "Too many open files" in one
    for name in names:
        said = f"skipping the damaged checkpoint step-00000009: the content of {name} has changed"
        assert found[name]["ranks"] == [[step, [said]]] * 2
