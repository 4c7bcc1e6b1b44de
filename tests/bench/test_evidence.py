"""`make gpu` on the CPU with a tiny model: it must not rot where no GPU is."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu import evidence
from launcher.config.compose import compose
from support.ranks import environment

SCRIPT = Path(evidence.__file__)
SMALL = ["--device=cpu", "--models=tiny", "--steps=3", "--length=128", "--documents=40"]
SMALL += ["--sequences=4", "--micro=2"]

import gpu_cases  # noqa: E402
import gpu_models  # noqa: E402
import gpu_page  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_profile  # noqa: E402
import gpu_suite  # noqa: E402


def results_of(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_pass_runs_every_part_and_its_page_has_them(tmp_path):
    words = ["--minutes=12", "--tests", "varlen", "--ablations", "DeepSpeed, ZeRO-3"]
    words += ["--set", "hits: train.token_accuracy=true", "--set", "optim.lr=abc"]
    command = [sys.executable, str(SCRIPT), *SMALL, *words, f"--out={tmp_path}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=850)
    # One of the ablations is wrong: the pass says so, and goes on.
    assert done.returncode == 1, done.stdout + done.stderr
    page = (tmp_path / "evidence.md").read_text()
    found = {}
    for result in results_of(tmp_path):
        found.setdefault(result["part"], {})[result["name"]] = result
    assert [*found["summary"]] == [part.name for part in evidence.PARTS]
    wrong = {name: part["failed"] for name, part in found["summary"].items() if part["failed"]}
    assert wrong == {"ablations": ["optim.lr=abc"]}, done.stdout
    assert "optim.lr" in found["ablations"]["optim.lr=abc"]["error"]

    assert found["machine"]["CPU"]["matmul_flops"] > found["machine"]["CPU"]["bandwidth"] / 10 > 0
    assert "20 steps on cpu" in found["smoke"]["launcher train"]["text"]
    assert found["tests"]["test_varlen.py"]["text"].endswith(" skipped")
    assert [*found["rows"]] == ["tiny full", "tiny LoRA, checkpointing"]
    assert found["ablations"]["DeepSpeed, ZeRO-3"]["zero"] == 3
    assert found["rows"]["tiny full"]["zero"] is None
    # As a rank of `launcher train` has it.
    assert found["rows"]["tiny full"]["allocator"] == "expandable_segments:True"
    kinds = found["profiles"]["tiny full"]["profile"]["kinds"]
    assert sum(kinds.values()) == pytest.approx(1)
    assert kinds["gemm"] > 0.02
    changed = [found["ablations"][name] for name in ("hits", "DeepSpeed, ZeRO-3")]
    measured = [*found["rows"].values(), *changed]
    for row in [*measured, found["peers"]["hand-written loop"]]:
        assert row["micro"] == 2
        assert 0 < row["target_tokens_per_s"] < row["tokens_per_s"]
        assert 0 < row["mfu_measured"] < 1
        assert row["mfu_data_sheet"] is None
        assert 0 < row["memory_gib"] < 8
        assert f"| {row['tokens_per_s']:,.0f} |" in page
    for part in found["summary"]:
        assert f"\n## {part.capitalize()}\n" in page
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    # They may have to travel.
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.slow
def test_without_a_gpu_it_says_so_at_once(tmp_path):
    command = [sys.executable, str(SCRIPT), f"--out={tmp_path}"]
    environ = environment(CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    page = (tmp_path / "evidence.md").read_text()
    assert "| machine | 0 of 1 passed; failed: device |" in page
    assert page.count("the device cannot be used") == len(evidence.PARTS) - 1
    assert any(word in page for word in ("NVIDIA", "CUDA"))


@pytest.mark.parametrize("words", [w for w in gpu_cases.ABLATIONS.values() if not w[0].isupper()])
def test_every_ablation_changes_an_option_that_there_is(words):
    base = ["model.name=m", "data.train=t.jsonl", "batch.sequences=8", "train.steps=1"]
    changed = [*base, *shlex.split(words)]
    _, problems = compose.try_compose(changed)
    assert not problems
    assert compose.compose(changed) != compose.compose(base)


def test_every_row_is_of_a_model_that_there_is_and_has_a_name_of_its_own():
    assert {case.model for case in gpu_cases.ROWS} == {*gpu_models.MODELS}
    names = [case.name for case in gpu_cases.ROWS]
    assert len(names) == len({*names})
    assert {*gpu_cases.PROFILES} <= {*names}


def test_an_ablation_is_its_base_with_one_change():
    base = gpu_cases.base(["1.7b"])
    one, two = gpu_cases.ablations(base, ["8-bit AdamW"], ["pool: NCCL_DEBUG=INFO engine=zero3"])
    assert (one.model, one.words, one.needs) == ("1.7b", ("optim=adamw8bit",), ("bitsandbytes",))
    assert (two.name, two.words, two.variables) == (
        *("pool", ("engine=zero3",)),
        {"NCCL_DEBUG": "INFO"},
    )


@pytest.mark.parametrize("minutes", [0.5, 2, 4, 9, 30])
def test_time_is_shared_out_and_the_least_valuable_parts_go_first(minutes):
    timed = evidence.limits([*evidence.PARTS], 60 * minutes)
    assert sum(seconds for _, seconds in timed) == pytest.approx(60 * minutes)
    assert [part.name for part, _ in timed] == [p.name for p in evidence.PARTS[: len(timed)]]
    if minutes == 9:
        assert [seconds for _, seconds in timed] == [part.seconds for part in evidence.PARTS]
    assert len(timed) == {0.5: 1, 2: 2, 4: 6, 9: 7, 30: 7}[minutes]


def test_the_docs_say_how_long_each_part_takes():
    page = (SCRIPT.parents[2] / "docs/performance.md").read_text()
    rows = re.findall(r"^\| (\w+) \| .* \| (\d+) \|$", page.partition("## GPU")[2], re.M)
    assert rows == [(part.name, str(part.seconds)) for part in evidence.PARTS]


def test_what_hangs_is_killed_with_what_it_started(tmp_path):
    processes = gpu_processes.Processes(tmp_path, tmp_path, "cpu")
    script = "import subprocess, time; print('begun');"
    script += "subprocess.Popen(['sleep', '98'], start_new_session=True); time.sleep(99)"
    began = time.monotonic()
    ended = processes.run([sys.executable, "-c", script], "log", 3)
    processes.end_all()
    assert ended.problem.startswith("not finished after ")
    assert ended.output == "begun\n"
    assert time.monotonic() - began < 60
    mark = processes._mark
    for _ in range(100):
        if not any(mark in environ for environ in environments()):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")


def environments():
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            yield Path("/proc", name, "environ").read_bytes()
        except OSError:
            continue


def test_every_file_of_gpu_tests_is_run():
    ran = {name.partition(",")[0] for name, _ in gpu_suite.commands(None)}
    assert ran == {path.name for path in SCRIPT.parent.glob("test_*.py")}
    assert {f"test_{name}.py" for name in gpu_suite.ORDER} <= ran
    (only,) = gpu_suite.commands(["varlen"])
    assert only[1][-1] == "tests/gpu/test_varlen.py"
    for name, words in gpu_suite.ALONE.items():
        assert f"def test_{words}" in (SCRIPT.parent / f"test_{name}.py").read_text()


def test_a_hung_test_file_is_told_from_a_failed_one():
    said = "tests/gpu/test_a.py::test_x[1] PASSED\ntests/gpu/test_a.py::test_y FAILED\n"
    found = gpu_suite.outcome(said + "tests/gpu/test_a.py::test_z ", "not finished after 60 s")
    assert found["error"] == (
        "1 failed, 1 passed; not finished after 60 s; failed: test_y, test_z (hung)"
    )
    assert gpu_suite.outcome(said, "exit code 1")["error"].endswith("failed: test_y")
    assert gpu_suite.outcome(said[:42], "") == {"text": "1 passed"}
    side_by_side = "tests/gpu/test_a.py::test_x[1] \ntests/gpu/test_a.py::test_y \n"
    side_by_side += "[gw0] PASSED tests/gpu/test_a.py::test_x[1] \n"
    assert gpu_suite.outcome(side_by_side, "") == {"text": "1 passed"}
    found = gpu_suite.outcome(side_by_side, "not finished after 60 s")
    assert found["error"].endswith("failed: test_y (hung)")
    assert "exit code 2" in gpu_suite.outcome("ERROR collecting", "exit code 2")["error"]


def test_results_are_there_before_the_pass_ends(tmp_path):
    options = argparse.Namespace(out=tmp_path, device="cpu", minutes=9, words=[])
    run = evidence.Pass(options, tmp_path)
    run.part = "rows"
    run.add("a", tokens_per_s=1234.5, memory_gib=2.0)
    run.add("b", error="out | of memory")
    assert [result["name"] for result in results_of(tmp_path)] == ["a", "b"]
    page = (tmp_path / "evidence.md").read_text()
    assert "| a | 1,234 |" in page
    assert "| b | out / of memory |" in page
    run.end()
    assert run.failed


def test_a_part_that_breaks_leaves_a_page():
    results = [{"part": part.name, "name": part.name, "error": "E"} for part in evidence.PARTS]
    facts = {"command": "c", "date": "d", "minutes": 9}
    assert gpu_page.page(facts, results).count("E") >= len(evidence.PARTS)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_kernel<cutlass::bf16>", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_NNT", "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "gemm"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "memcpy"),
        ("Memcpy HtoD (Pageable -> Device)", "memcpy"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor<float>>", "elementwise"),
        ("triton_poi_fused_add_mul_silu_0", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::MeanOps<float>>", "reduction"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("void kQuantizeBlockwise<__nv_bfloat16>", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert gpu_profile.kind_of(kernel) == kind
