"""Every ZeRO stage on one GPU against the same tiny model and data in fp32 on the CPU."""

import json

import numpy as np
import pytest

from support import caches, gpu
from support.models import make_llama
from support.ranks import run_ranks

pytestmark = [*gpu.ONLY, pytest.mark.slow]

STEPS, LENGTH, RECORDS = 4, 64, 60
STAGES = (None, 0, 1, 2, 3)
#: Sums in another order, TF32 off.
FP32 = 2e-5
#: bf16 keeps 8 bits of weights and activations; the loss is an average over 200 tokens.
BF16 = 3e-3
LORA = {"peft": {"name": "lora", "rank": 4}}


def case(name, folder, *, zero, precision="fp32", **config):
    """`zero` None is the engine of one rank; a key of DeepSpeed's has it train the only rank."""
    extra = {} if zero is None else {"zero_optimization": {"contiguous_gradients": True}}
    stage = 2 if zero is None else zero
    return {
        "name": name,
        "config": {
            "model": {"name": str(folder), **config.pop("model", {})},
            "data": {"max_length": LENGTH},
            # Two packs a forward, two forwards a step.
            "batch": {"sequences": 4, "micro": 2},
            "train": {"steps": STEPS},
            "engine": {"zero": stage, "precision": precision, "extra": extra},
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
            **config,
        },
    }


def run_cases(folder, device, cases):
    source, out = folder / f"{device}-cases.json", folder / f"{device}.json"
    source.write_text(json.dumps({"cache": str(folder / "cache"), "cases": cases}))
    environ = gpu.VISIBLE if device == "cuda" else None
    run_ranks(
        "tests/gpu/worker.py",
        device,
        str(source),
        str(out),
        ranks=1,
        timeout_s=280,
        environ=environ,
    )
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(CPU results, GPU results), each from one start of a process."""
    folder = tmp_path_factory.mktemp("zero")
    model = make_llama(
        folder / "model", hidden_size=128, num_attention_heads=2, num_key_value_heads=1
    )
    rng = np.random.default_rng(0)
    records = []
    for _ in range(RECORDS):
        length = int(rng.integers(5, 40))
        flags = (rng.random(length) < 0.6).astype(int)
        flags[-1] = 1
        records.append((rng.integers(7, 290, length).tolist(), flags.tolist()))
    caches.write(folder / "cache", records, max_length=LENGTH)
    cpu = [case("full", model, zero=None), case("lora", model, zero=None, **LORA)]
    cases = [case(f"fp32 {zero}", model, zero=zero) for zero in STAGES]
    cases += [case(f"bf16 {zero}", model, zero=zero, precision="bf16") for zero in STAGES]
    cases += [case(f"lora {zero}", model, zero=zero, precision="bf16", **LORA) for zero in STAGES]
    again = {"gradient_checkpointing": True}
    cases += [
        case(f"checkpointed {zero}", model, zero=zero, precision="bf16", model=again)
        for zero in (2, 3)
    ]
    cases += [case("fp16", model, zero=2, precision="fp16")]
    return run_cases(folder, "cpu", cpu), run_cases(folder, "cuda", cases)


@pytest.mark.parametrize("zero", STAGES)
def test_fp32_equals_the_cpu(results, zero):
    cpu, cuda = results
    got = cuda[f"fp32 {zero}"]
    assert got["devices"] == ["cuda"]
    assert got["attention"] == "document"
    np.testing.assert_allclose(got["losses"], cpu["full"]["losses"], rtol=FP32)
    np.testing.assert_allclose(got["norms"], cpu["full"]["norms"], rtol=10 * FP32)


@pytest.mark.parametrize("kind", ["bf16", "lora"])
@pytest.mark.parametrize("zero", STAGES)
def test_bf16_with_varlen_attention_follows_the_cpu(results, kind, zero):
    cpu, cuda = results
    got = cuda[f"{kind} {zero}"]
    assert got["attention"] == "varlen"
    assert np.isfinite(got["losses"]).all()
    wanted = cpu["full" if kind == "bf16" else "lora"]["losses"]
    # Stage 3 draws its adapters from the GPU's generator: all agree on the first loss, the base's.
    compared = 1 if (kind, zero) == ("lora", 3) else STEPS
    np.testing.assert_allclose(got["losses"][:compared], wanted[:compared], rtol=BF16)


@pytest.mark.parametrize("zero", [2, 3])
def test_checkpointed_activations_change_nothing(results, zero):
    _, cuda = results
    got, wanted = cuda[f"checkpointed {zero}"], cuda[f"bf16 {zero}"]
    np.testing.assert_allclose(got["losses"], wanted["losses"], rtol=1e-3)


def test_fp16_runs(results):
    cpu, cuda = results
    got = cuda["fp16"]["losses"]
    assert np.isfinite(got).all()
    # Steps are skipped until the loss scale has come down, so only the first loss must agree.
    np.testing.assert_allclose(got[0], cpu["full"]["losses"][0], rtol=BF16)
