"""Devices of ranks against what was planned: nothing is computed elsewhere without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.core import runtime
from launcher.distributed import devices
from tests.support.configs import make_config

CAUSE = "torch 2.13.0+cpu is built without CUDA"
CPU = {"type": "cpu", "hidden": False, "promise": "", "cause": CAUSE}
CUDA_PLAN = {"device": "cuda", "precision": "bf16"}
CPU_PLAN = {"device": "cpu", "precision": "fp32"}


def gpu(identity: str, name: str = "H100", *, bf16: bool = True) -> dict[str, Any]:
    return {"type": "cuda", "name": name, "id": identity, "bf16": bf16}


def judged(plan, *found: dict[str, Any], host=lambda rank: "a", **config):
    places = {rank: {"host": host(rank), "device": device} for rank, device in enumerate(found)}
    problems, notes = devices.judge(make_config(**config), plan, places)
    return [str(problem) for problem in problems], notes


def test_gpus_of_the_cluster_that_torch_cannot_use_are_refused_with_cause_and_fix():
    slurm = {"launch": {"name": "slurm"}, "cluster": {"gpus_per_node": 2}}
    problems, _ = judged(CUDA_PLAN, CPU, CPU, **slurm)
    assert len(problems) == 1
    for text in ("cluster.gpus_per_node=2", "rank 0 on a and 1 more", CAUSE, "gpus_per_node=0"):
        assert text in problems[0]


@pytest.mark.parametrize(
    ("plan", "promise", "hidden", "refused"),
    [
        (CPU_PLAN, "", False, False),  # a host without GPUs
        (CPU_PLAN, "this host has 2 GPUs", False, True),
        (CUDA_PLAN, "", False, True),  # planned on another host
        (CUDA_PLAN, "", True, False),  # the user hides them
    ],
)
def test_the_cpu_is_only_taken_where_nothing_else_was_promised(plan, promise, hidden, refused):
    problems, notes = judged(plan, CPU | {"promise": promise, "hidden": hidden})
    assert bool(problems) is refused
    assert bool(notes) is (plan is CUDA_PLAN and hidden)


def test_a_cluster_without_gpus_in_its_config_means_the_cpu():
    slurm = {"launch": {"name": "slurm"}, "cluster": {"gpus_per_node": 0}}
    assert judged(CPU_PLAN, CPU | {"promise": "this host has 4 GPUs"}, **slurm) == ([], [])


def test_ranks_that_would_share_a_gpu_are_refused():
    problems, _ = judged(CUDA_PLAN, gpu("x"), gpu("x"))
    assert "2 ranks and shows them 1 GPU: ranks 0, 1 would share" in problems[0]
    assert "launch.processes=1" in problems[0]
    # Each sees one, by Slurm or a hostfile, or they are on two hosts.
    assert judged(CUDA_PLAN, gpu("x"), gpu("y")) == ([], [])
    assert judged(CUDA_PLAN, gpu("x"), gpu("x"), host=str) == ([], [])


def test_mixed_devices():
    problems, _ = judged(CUDA_PLAN, gpu("x"), CPU | {"hidden": True})
    assert "rank 1 on a would compute on the CPU, the others on GPUs" in problems[0]
    problems, notes = judged(CUDA_PLAN, gpu("x"), gpu("y", "A100"))
    assert not problems
    assert "A100, H100" in notes[0]


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"engine": {"precision": "bf16"}}, "engine.precision"),
        ({"model": {"dtype": "bf16"}}, "model.dtype"),
    ],
)
def test_bf16_that_a_gpu_cannot_compute_is_refused(asked, where):
    problems, _ = judged(CUDA_PLAN, gpu("x", bf16=False), **asked)
    assert problems[0].startswith(f"{where}: the GPU of rank 0 on a cannot compute in bf16")
    assert judged(CUDA_PLAN, gpu("x", bf16=False)) == ([], [])  # auto gives way


@pytest.mark.parametrize(
    ("variables", "promised", "hides"),
    [
        ({}, "", False),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1", False),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "CROSS_RANK": "0"}, "", False),  # deepspeed's own
        ({"CUDA_VISIBLE_DEVICES": ""}, "", True),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_GPUS": "0"}, "", True),
        ({"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE=4", False),
        ({"SLURM_GPUS_ON_NODE": "0"}, "", False),
        ({"PATH": "smi"}, "nvidia-smi lists 2 GPUs", False),
    ],
)
def test_what_promises_gpus(tmp_path, monkeypatch, variables, promised, hides):
    if runtime.gpu_count() or torch.cuda.is_available():
        pytest.skip("this host has GPUs")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    script = tmp_path / "smi" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-a)'\necho 'GPU 1: H100'\n")
    script.chmod(0o755)
    for name, value in variables.items():
        monkeypatch.setenv(name, f"{script.parent}:/bin" if name == "PATH" else value)
    assert promised in runtime.promised_gpus()
    assert bool(runtime.promised_gpus()) is bool(promised)
    assert runtime.hides_gpus() is hides


@pytest.mark.parametrize(
    ("capability", "refused"), [([7, 0], True), ([7, 5], True), ([8, 0], False)]
)
def test_kernels_that_a_gpu_is_too_old_for_are_refused(capability, refused):
    plan = CUDA_PLAN | {"precision": "fp16", "attention": "varlen"}
    cards = gpu("y") | {"capability": [9, 0]}, gpu("x") | {"capability": capability}
    for kernel in ("varlen", "flash"):
        problems, _ = judged(plan, *cards, model={"attention": kernel})
        assert bool(problems) is refused
        if refused:
            shown = ".".join(map(str, capability))
            begin = f"model.attention: the GPU of rank 1 on a has compute capability {shown}"
            assert problems[0].startswith(begin)
            assert problems[0].endswith("HINT: model.attention=document")
    problems, notes = judged(plan, *cards)
    assert problems == []
    assert bool(notes) is refused


@pytest.mark.parametrize(
    ("capability", "refused"), [([8, 0], True), ([8, 6], True), ([8, 9], False), ([9, 0], False)]
)
def test_fp8_on_a_gpu_without_it_is_refused(capability, refused):
    cards = gpu("y") | {"capability": [9, 0]}, gpu("x") | {"capability": capability}
    problems, _ = judged(CUDA_PLAN, *cards, model={"fp8": True})
    assert bool(problems) is refused
    if refused:
        shown = ".".join(map(str, capability))
        begin = f"model.fp8: the GPU of rank 1 on a has compute capability {shown}; matrix products"
        assert problems[0].startswith(begin)
        assert problems[0].endswith("HINT: model.fp8=false")
    assert judged(CUDA_PLAN, *cards) == ([], [])


@pytest.mark.parametrize(
    ("found", "least"),
    [([], None), ([None, None], None), ([[9, 0], (8, 0)], (8, 0)), ([(7, 5), (10, 0)], (7, 5))],
)
def test_ranks_compute_as_the_oldest_gpu_can(found, least):
    assert devices.oldest(found) == least
