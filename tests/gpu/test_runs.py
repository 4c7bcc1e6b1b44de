"""`launcher train` on one GPU: LoRA with evaluation, resume to the bit, out of memory."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from launcher.config.derive.cards import peak_flops
from launcher.core.errors import ExitCode
from support import gpu
from support.ranks import environment

pytestmark = [*gpu.ONLY, pytest.mark.slow]

BARE = ("eval=none", "export.at_end=false")
#: In documents this short the kernels add in one order only, so that training is repeatable.
SHORT = ("data.max_length=64", "batch.sequences=8", "batch.micro=4")


@pytest.fixture
def folder(tmp_path):
    texts = [json.dumps({"text": f"Text {n} counts {n * 7}. " * 4}) for n in range(300)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    sums = [
        json.dumps({"prompt": f"{a} plus {b} is", "completion": f"{a + b}"})
        for a in range(20)
        for b in range(20)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(sums))
    return tmp_path


def run(folder, *words, exit_code=ExitCode.ok):
    """Run a module of the launcher in `folder`; returns the finished process."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment(**gpu.VISIBLE),
        capture_output=True,
        text=True,
        timeout=280,
    )
    shown = f"{done.stdout}\n{done.stderr}"
    for log in (folder / "runs").glob("r/attempts/*/rank-*"):
        shown += f"\n{log}:\n{log.read_text()[-4000:]}"
    assert done.returncode == exit_code, shown
    return done


def train(folder, *words, **options):
    one = ("run.name=r", "launch.processes=1", "train.log_every_steps=1", "model=tiny")
    return run(folder, "launcher.cli", "train", *one, *words, **options)


def lines(folder, kind):
    found = map(json.loads, (folder / "runs/r/metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def test_lora_trains_evaluates_exports_and_answers(folder):
    train(
        folder,
        "peft=lora",
        "data=prompt",
        "data.train=sums.jsonl",
        "data.max_length=256",
        "batch.sequences=8",
        "train.steps=40",
        "optim.lr=1e-2",
        "eval=exact_match",
        "eval.max_new_tokens=8",
        "eval.every_steps=20",
    )
    plan = json.loads((folder / "runs/r/plan.json").read_text())
    assert (plan["device"], plan["precision"], plan["attention"]) == ("cuda", "bf16", "varlen")
    trained = lines(folder, "train")
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5
    assert trained[-1]["memory_bytes"] > 0
    if peak_flops(torch.cuda.get_device_name(), "bf16"):
        assert 0 < trained[-1]["mfu"] < 1
    comparison = json.loads((folder / "runs/r/eval/comparison.json").read_text())
    loss = comparison["metrics"]["loss"]
    assert loss["tuned"] < loss["base"]
    assert "exact_match" in comparison["metrics"]
    answer = run(folder, "launcher.cli", "generate", "r", "-p", "3 plus 4 is", "--max-new-tokens=8")
    assert answer.stdout.strip()


def digests(run_folder, step):
    """Name -> hash of the weights and optimizer files of a checkpoint."""
    path = run_folder / f"checkpoints/step-{step:08d}/manifest.json"
    files = json.loads(path.read_text())["files"]
    assert any(name.startswith("optimizer") for name in files)
    return {name: entry["blake2b"] for name, entry in files.items()}


@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.parametrize("zero", [None, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(folder, zero, peft):
    words = ["data=text", "objective=text", "data.train=texts.jsonl", *SHORT, *BARE]
    words += ["train.steps=6", "checkpoint.every_steps=3", "checkpoint.keep_last=9"]
    words += [f"peft={peft}", "optim.lr=1e-3"]
    if zero is not None:  # a key of DeepSpeed's has it train the only rank
        extra = "engine.extra={zero_optimization:{contiguous_gradients:true}}"
        words += [f"engine=zero{zero}", extra]
    if peft == "lora":
        words += ["peft.dropout=0.1"]  # draws from the GPU's generator
    train(folder, *words)
    whole, again = folder / "runs/r", folder / "runs/again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints/step-00000006")
    resumed = run(folder, "launcher.train", "runs/again")
    assert "resuming from step 3" in resumed.stdout
    assert digests(again, 6) == digests(whole, 6)
    assert digests(whole, 3) != digests(whole, 6)


def test_out_of_memory_is_exit_code_4_and_says_what_to_change(folder):
    free, _ = torch.cuda.mem_get_info()
    # The child keeps 4 GiB: enough for CUDA, NCCL and the model, too little for its activations.
    taken = torch.empty(max(0, free - 4 * 2**30), dtype=torch.uint8, device="cuda")
    big = ("hidden_size=1024", "intermediate_size=4096", "layers=6", "heads=16", "kv_heads=16")
    try:
        done = train(
            folder,
            *(f"model.{word}" for word in big),
            *("data=text", "objective=text", "data.train=texts.jsonl", *BARE),
            *("data.max_length=1024", "batch.sequences=64", "batch.micro=64", "train.steps=2"),
            exit_code=ExitCode.out_of_memory,
        )
    finally:
        del taken
        torch.cuda.empty_cache()
    assert "batch.micro=1" in done.stdout + done.stderr
    status = json.loads((folder / "runs/r/status.json").read_text())
    assert status["exit_code"] == ExitCode.out_of_memory
