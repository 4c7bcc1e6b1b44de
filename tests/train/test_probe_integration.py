"""`launcher plan --probe` and memory.json on real ranks: measured, proposed, left behind."""

from __future__ import annotations

import json
import os
import signal

import pytest

from launcher.core.errors import ExitCode
from support import project
from support.chats import chat
from support.models import make_llama
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow
PLAN = (*LAUNCHER, "plan", "--probe")
TRAIN = (*LAUNCHER, "train")
WORDS = ("batch.sequences=8", "launch.processes=2", "peft=lora", "train.steps=40")


@pytest.fixture
def here(tmp_path):
    made = Project(tmp_path)
    made.write_data(project.conversations(60))
    return made


@pytest.fixture
def full(tmp_path):
    """A model large enough that what is not counted is small beside it, and rows that are full."""
    sizes = {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 352}
    model = make_llama(tmp_path / "model", **sizes, num_hidden_layers=4)
    made = Project(tmp_path, model)
    made.write_data(chat(f"{n}?", f"It is {2 * n}. " * 30) for n in range(60))
    return made


def probed(done):
    """The JSON of a probe, which progress follows or goes before."""
    return json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])


def test_a_probe_measures_memory_time_and_disk_beside_the_estimate(full):
    here = full
    words = here.words("x", *WORDS, "data.validation_share=0.1", "eval=default")
    done = here.run(PLAN, *words, "--json")
    assert done.code == ExitCode.ok, done.output
    found = probed(done)
    first, *others = found["probe"]["trials"]
    assert first["outcome"] == "measured"
    assert first["overrides"] == []
    assert first["steps"] == 3
    assert first["planned"] == found["memory"]
    assert len(first["ranks"]) == 2
    assert first["peak_bytes"] == max(rank["peak"] for rank in first["ranks"])
    assert first["estimate_bytes"] == pytest.approx(first["peak_bytes"], rel=0.1)
    for rank in first["ranks"]:
        assert rank["optimizer"] == pytest.approx(found["memory"]["optimizer"], rel=0.01)
        assert rank["weights"] == pytest.approx(found["memory"]["weights"], rel=0.01)
    # Headers and manifest come on top, which count in a model as small as this.
    assert 0 < first["checkpoint_bytes"] - found["disk"]["checkpoint"] < 80_000
    assert min(first["step_s"], first["evaluation_s"], first["save_s"]) > 0
    to_end = found["probe"]["to_end"]
    assert to_end["seconds"] > 40 * first["step_s"]
    assert to_end["gpu_hours"] == 0
    tried = [trial for trial in others if trial["outcome"] != "not measured"]
    assert tried
    assert all(len(set(trial["overrides"]) & set(words)) == 0 for trial in tried)
    measured = [trial["overrides"] for trial in (first, *tried) if trial["outcome"] == "measured"]
    assert found["probe"]["fastest"] in measured
    assert not (here.folder / "runs").exists()


def test_the_longest_batch_is_probed(here):
    here.write_data([chat("Hi", "Yes."), *[chat("Hi", "No.")] * 14, chat("Say", "word " * 20)])
    words = here.words("x", *WORDS, "data.packing=false", "data.shuffle=false", "batch.sequences=2")
    first = probed(here.run(PLAN, *words, "--json", "--within", "100"))["probe"]["trials"][0]
    assert first["batch"] == 7
    run = here.run(TRAIN, *words, "train.steps=8")
    assert run.code == ExitCode.ok, run.output
    lines = [json.loads(line) for line in here.folder_of("x").metrics.read_text().splitlines()]
    tokens = [line["tokens"] for line in lines if line["kind"] == "train"]
    assert first["tokens"] == tokens[7] - tokens[6]


def test_a_probe_that_runs_out_of_memory_says_so(here):
    here.write_data([chat("Count.", "one two three " * 15000)])
    words = here.words(
        *("x", "model.attention=eager", "data.packing=false", "data.max_length=200000"),
        *("batch.sequences=1", "train.steps=2"),
    )
    # The mask of 150,012 tokens needs 22 GB, more than the process may have.
    done = here.run(PLAN, *words, address_space=12 << 30)
    assert done.code == ExitCode.out_of_memory, done.output
    assert "measured out of memory" in done.output
    assert "HINT: " in done.output
    assert not (here.folder / "runs").exists()


def test_a_probe_ends_with_its_time(here):
    done = here.run(PLAN, *here.words("x", *WORDS), "--within", "0.5")
    assert done.code == ExitCode.hang, done.output
    assert "measured out of time" in done.output
    assert "--within" in done.output
    assert not (here.folder / "runs").exists()


def test_ctrl_c_leaves_nothing_of_a_probe(here):
    running = here.start(PLAN, *here.words("x", *WORDS))
    ranks = here.folder / "runs"
    running.wait_until(lambda: list(ranks.glob(".probe-*/probe/heartbeats/rank-1.json")), "ranks")
    pids = [
        json.loads(file.read_text())["pid"] for file in ranks.glob(".probe-*/probe/heartbeats/*")
    ]
    os.kill(running.process.pid, signal.SIGINT)
    done = running.end()
    assert done.code == ExitCode.interrupted, done.output
    assert not ranks.exists()
    assert not any(project.is_alive(pid) for pid in pids)


def test_what_cannot_be_started_from_here_is_refused(here):
    for words, hint in (
        (("launch=slurm", "cluster.gpus_per_node=0"), "launch=local"),
        (("launch=torchrun", "launch.nodes=2"), "launch=local"),
        (("model.name=nobody/nothing-here",), "HINT: "),
    ):
        done = here.run(PLAN, *here.words("x", *WORDS), *words, HF_HUB_OFFLINE="1")
        assert done.code == ExitCode.usage, done.output
        assert hint in done.output
        assert not (here.folder / "runs").exists()


@pytest.mark.parametrize(("zero", "peft"), [(0, "none"), (2, "none"), (3, "none"), (3, "lora")])
def test_a_run_tells_what_each_rank_has_held_beside_the_plan(full, zero, peft):
    here = full
    words = here.words(
        *("held", f"engine.zero={zero}", f"peft={peft}", "batch.sequences=8", "batch.micro=2"),
        *("launch.processes=2", "train.steps=3"),
    )
    done = here.run(TRAIN, *words)
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of("held")
    found = json.loads(run.memory.read_text())
    assert found["planned"] == json.loads(run.plan.read_text())["memory"]
    assert len(found["ranks"]) == 2
    for rank in found["ranks"]:
        assert rank["weights"] == pytest.approx(found["planned"]["weights"], rel=0.02)
        assert rank["optimizer"] == pytest.approx(found["planned"]["optimizer"], rel=0.02)
        assert rank["peak"] == pytest.approx(sum(found["planned"].values()), rel=0.1)
    page = run.path.joinpath("report.html").read_text()
    assert "memory of a rank in a step" in page
    assert "of it optimizer" in page


def test_buckets_are_cut_by_what_is_trained_where_the_plan_cannot_count_it(tmp_path):
    """Without the number, DeepSpeed would get a bucket of 200 MB."""
    from transformers import HeliumConfig, HeliumForCausalLM

    model = make_llama(tmp_path / "model")
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    HeliumForCausalLM(HeliumConfig(**sizes, pad_token_id=0)).save_pretrained(model)
    here = Project(tmp_path, model)
    here.write_data(project.conversations(20))
    words = ("peft=lora", "engine=zero2", "launch.processes=2", "train.steps=2")
    planned = json.loads(here.run((*LAUNCHER, "plan"), *here.words("x", *words), "--json").output)
    assert planned["trainable"] is None
    done = here.run(TRAIN, *here.words("held", *words))
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of("held")
    assert json.loads(run.plan.read_text())["trainable"] > 0
    assert all(rank["peak"] < 50e6 for rank in json.loads(run.memory.read_text())["ranks"])
