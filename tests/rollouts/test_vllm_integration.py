"""Runs whose answers come from servers: a small stand-in everywhere, and vLLM where it is.

LAUNCHER_TEST_VLLM names a Python that has vLLM; a model's heads have 32 places, fewer its kernels
for CPUs do not take.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.config.schema.distill import Divergence
from launcher.core import processes
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State
from launcher.launch.queue import queue_job
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal
from launcher.vllm import places
from support import project
from support.distillation import divergence
from support.models import make_llama
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project, Started
from support.slurm import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VLLM = os.environ.get("LAUNCHER_TEST_VLLM")
STAND_IN = Path(__file__).parents[1] / "support" / "vllm_stand_in" / "python"
STEPS, ANSWERS, NEW = 4, 16, 6
WORDS = (
    *("objective=grpo", "objective.group_size=4", f"objective.max_new_tokens={NEW}"),
    "objective.grader={type: string_check, name: has, input: '{{sample.output_text}}',"
    " reference: e, operation: ilike}",
    *(f"batch.sequences={ANSWERS}", f"train.steps={STEPS}", "data.max_length=64"),
    *("optim.lr=1e-2", "schedule=constant", "peft=none", "seed=3", "engine.precision=fp32"),
    *("checkpoint.every_steps=1", "checkpoint.keep_last=9", "objective.max_sampler_gap=1e-4"),
    "rollout=vllm",
)
real = pytest.mark.skipif(not VLLM, reason="LAUNCHER_TEST_VLLM names no Python with vLLM")
SERVERS = [pytest.param("stand-in", id="stand-in"), pytest.param("vllm", marks=real, id="vllm")]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    made = Project(folder, make_llama(folder / "model", initializer_range=0.1, **sizes))
    made.write_data({"prompt": f"Say {i}.", "completion": "e"} for i in range(24))
    return made


class Server(NamedTuple):
    name: str
    words: tuple[str, ...]


@pytest.fixture(params=SERVERS)
def server(request) -> Server:
    return Server(request.param, words_of(request.param))


def words_of(kind: str) -> tuple[str, ...]:
    if kind == "stand-in":
        return (f"rollout.python={STAND_IN}",)
    space = "rollout.environment={VLLM_CPU_KVCACHE_SPACE: '1'}"
    return (f"rollout.python={VLLM}", "rollout.options=['--enforce-eager']", space)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch, tmp_path):
    monkeypatch.setenv("LAUNCHER_TEST_PYTHON", sys.executable)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where weights are handed over
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there, and nobody is asked
    yield
    assert list(tmp_path.glob("launcher-rollout-*")) == []


def start(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> Started:
    return here.start(command, *here.words(name, *WORDS, *words))


def trained(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> RunDir:
    done = start(here, name, *words, command=command).end()
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name)


def record(run: RunDir, number: int = 0, attempt: int = 1) -> places.ServerRecord | None:
    return places.read(places.folder_of(run, attempt), number)


def rollout(run: RunDir, step: int) -> list[ScoredAnswer]:
    return RolloutJournal(run, ANSWERS).read(step) or []


def is_gone(run: RunDir, number: int = 0) -> bool:
    found = record(run, number)
    return found is None or not processes.alive(found.pid, time.time())


CUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all": ((), DIRECT),
    "lora": (("peft=lora", "peft.rank=4"), DIRECT),
    "sharded": (("engine=zero3",), TORCHRUN),
    "sharded-lora": (("engine=zero3", "peft=lora", "optim.lr=1e-3"), TORCHRUN),
}


@pytest.mark.parametrize("cut", CUTS)
def test_servers_answer_by_the_weights_of_each_update(here, server, cut):
    """The trainer's log-probabilities of what was drawn are the server's, at every step."""
    words, command = CUTS[cut]
    run = trained(here, f"{cut}-{server.name}", *words, *server.words, command=command)
    gaps = project.losses(run, "sampler_gap")
    assert sorted(gaps) == [1, 2, 3, 4]
    assert max(gaps.values()) < 1e-5
    for step in range(STEPS):
        answers = rollout(run, step)
        assert [own.key for own in answers] == [(i // 4, i % 4) for i in range(ANSWERS)]
        assert all(own.behind == 0 for own in answers)
        assert all(own.cut is (own.tokens[-1] not in (2, 6)) for own in answers)
    first, last = (rollout(run, step)[0].sampler_log_probs for step in (0, STEPS - 1))
    assert first != last
    assert is_gone(run)
    assert not (places.folder_of(run, 1) / "order.json").exists()


def test_a_server_that_is_killed_is_started_again(here, server):
    started = start(here, f"killed-{server.name}", "train.steps=6", *server.words)
    run = here.folder_of(f"killed-{server.name}")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    found = record(run)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    found = record(run)
    assert found is not None
    assert not found.is_first
    assert max(project.losses(run, "sampler_gap").values()) < 1e-5
    assert is_gone(run)


def test_a_server_that_hangs_is_started_again(here):
    words = (*words_of("stand-in"), "rollout.answer_s=3", "train.steps=6")
    started = start(here, "hangs", *words)
    run = here.folder_of("hangs")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    found = record(run)
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    found = record(run)
    assert found is not None
    assert not found.is_first


def test_a_keeper_that_is_killed_is_started_again(here):
    started = start(here, "keeper", "train.steps=8", *words_of("stand-in"))
    run = here.folder_of("keeper")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    found = record(run)
    assert found is not None
    fields = processes.stat(found.pid)
    assert fields is not None
    os.kill(int(fields[1]), signal.SIGKILL)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    again = record(run)
    assert again is not None
    assert again.start != found.start
    assert max(project.losses(run, "sampler_gap").values()) < 1e-5
    assert is_gone(run)


@real
def test_an_engine_that_is_killed_behind_its_server_is_started_again(here):
    """vLLM's server lives on without it, and says so to whoever asks."""
    started = start(here, "engine", "train.steps=40", *words_of("vllm"))
    run = here.folder_of("engine")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    found = record(run)
    assert found is not None
    engine = max(processes.children(found.pid))
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: run.status().state.is_final, "the end", 400)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    assert max(project.losses(run, "sampler_gap").values()) < 1e-5


def test_servers_end_with_a_rank_that_is_killed(here):
    started = start(here, "orphans", "train.steps=500", *words_of("stand-in"))
    run = here.folder_of("orphans")
    started.wait_until(lambda: (run.rollouts / "step-00000000.jsonl").exists(), "a rollout")
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait()
    wait_for(lambda: is_gone(run), "the end of the server")
    # The folder of weights goes with the keeper, which is the last to end.
    wait_for(lambda: not list(Path(os.environ["TMPDIR"]).glob("launcher-rollout-*")), "no weights")


def test_a_stop_is_heard_while_answers_are_awaited(here):
    started = start(here, "stopped", "train.steps=500", *words_of("stand-in"))
    run = here.folder_of("stopped")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    started.process.send_signal(signal.SIGTERM)
    done = started.end()
    assert done.code == ExitCode.preempted, done.output
    assert is_gone(run)


def test_the_next_rollout_is_drawn_while_this_one_is_learned_from(here):
    words = ("rollout.ahead=true", "optim.lr=1e-3", "objective.max_sampler_gap=0.5")
    run = trained(here, "ahead", *words, *words_of("stand-in"))
    behind = project.losses(run, "behind")
    gaps = project.losses(run, "sampler_gap")
    assert behind == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0}
    assert gaps[1] < 1e-5
    assert all(1e-5 < gaps[step] < 0.5 for step in (2, 3, 4))
    # What was drawn is what the weights before say.
    straight = trained(here, "straight", "optim.lr=1e-3", *words_of("stand-in"))
    first, same = (rollout(one, 0) for one in (run, straight))
    assert [own.tokens for own in first] == [own.tokens for own in same]
    assert [own.behind for own in rollout(run, 3)] == [1] * ANSWERS


@torch.no_grad()
def test_a_teacher_says_of_older_answers_what_it_makes_of_the_model_now(here):
    make_llama(here.folder / "teacher", seed=1, initializer_range=0.3)
    words = ("rollout.ahead=true", "optim.lr=1e-3", "objective.max_sampler_gap=0.5")
    words += ("objective.teacher=teacher", "objective.teacher_divergence=reverse")
    words += ("objective.grader=null", "objective.loss=dapo", *words_of("stand-in"))
    run = trained(here, "taught", *words)
    once = trained(here, "taught-once", *words, "train.steps=1", "export.at_end=true")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (once.export, here.folder / "teacher")
    )
    far = []
    for own in rollout(run, 1):  # drawn by the weights before the first update
        assert own.behind == 1
        ids = torch.tensor([[*own.prompt_tokens, *own.tokens]])
        q, p = (
            one(ids).logits[0, len(own.prompt_tokens) - 1 : -1].softmax(-1)
            for one in (student, teacher)
        )
        far += divergence(Divergence.reverse, None, p, q).tolist()
    found = project.losses(run, "teacher_divergence")
    assert found[2] == pytest.approx(np.mean(far), rel=1e-5)
    assert found[4] < found[1]


def test_kept_rollouts_need_no_server(here):
    run = trained(here, "kept", *words_of("stand-in"))
    before = project.checkpoint_files(run)[STEPS]
    for step in (3, 4):
        for path in sorted((run.checkpoints / f"step-{step:08d}").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    run.set_status(State.preempted)
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.ok, done.output
    assert "vLLM server" not in done.output
    after = project.checkpoint_files(run)[STEPS]
    assert {n: d for n, d in after.items() if n.startswith("w")} == {
        n: d for n, d in before.items() if n.startswith("w")
    }


def test_who_does_not_know_the_token_is_refused(here):
    import httpx2

    started = start(here, "door", "train.steps=500", *words_of("stand-in"))
    run = here.folder_of("door")
    started.wait_until(lambda: (run.rollouts / "step-00000000.jsonl").exists(), "a rollout")
    found = record(run)
    assert found is not None
    assert found.url.startswith("unix:")
    order = places.folder_of(run, 1) / "order.json"
    assert order.stat().st_mode & 0o077 == 0
    own = found.url.removeprefix("unix:")
    assert Path(own).parent.stat().st_mode & 0o077 == 0
    first = json.loads(order.read_text())["token"]
    token = places.token_of(first, found.start)
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=own), base_url="http://own") as client:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {first}"}):
            for path in ("/health", "/collective_rpc", "/v1/completions"):
                assert client.post(path, json={}, headers=wrong).status_code == 401
        shown = {"Authorization": f"Bearer {token}"}
        assert client.get("/health", headers=shown).status_code == 200
    started.process.send_signal(signal.SIGTERM)
    started.end()


def test_a_server_that_cannot_start_ends_the_run_with_its_words(here, server):
    done = start(here, f"wrong-{server.name}", *server.words, "data.max_length=200000").end()
    assert done.code == ExitCode.usage, done.output
    assert "server 0 cannot be had: it has ended with exit code 1" in done.output
    assert "max_model_len" in done.output


def test_servers_that_share_gpus_sleep_while_ranks_train(here, tmp_path):
    """Only the order of the calls: no CPU can be given back."""
    calls = tmp_path / "calls"
    noted = f"rollout.environment={{STAND_IN_CALLS: '{calls}'}}"
    trained(here, "sleeps", "rollout.sleep=true", "train.steps=2", *words_of("stand-in"), noted)
    found = [json.loads(line) for line in calls.read_text().splitlines()]
    names = [(name, value if name in ("sleep", "wake") else None) for name, value in found]
    loads = [("weights", None), ("forget", None), ("forget", None)]
    woken = [("wake", "weights"), *loads, ("wake", "kv_cache")]
    assert names == [*loads, ("sleep", 2), *woken, ("sleep", 2)]
    weights = next(value for name, value in found if name == "weights")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {*weights}


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_servers_that_sleep_are_woken_to_draw_again(here, peft):
    """Groups that all score alike, as all do here, are replaced by others."""
    words = ("rollout.sleep=true", "objective.max_redraws=1", f"peft={peft}", "train.steps=2")
    same = "objective.grader={type: string_check, name: s, input: a, reference: a, operation: eq}"
    run = trained(here, f"wakes-{peft}", *words, same, *words_of("stand-in"))
    assert {own.draw for own in rollout(run, 1)} == {1}
    found = record(run)
    assert found is not None
    assert found.is_first


@pytest.mark.cluster
@pytest.mark.parametrize("preempted", [False, True])
def test_ranks_and_servers_on_two_nodes(here, server, cluster, preempted):
    name = f"nodes-{server.name}-{preempted}"
    words = ("launch=slurm", "rollout.nodes=1", "train.steps=8", *server.words)
    started = here.start(
        (*LAUNCHER, "train"), *here.words(name, *WORDS, *words), **cluster.environment
    )
    run = here.folder_of(name)
    if preempted:
        there = run.rollouts / "step-00000002.jsonl"
        started.wait_until(there.exists, "three rollouts")
        cluster.run(
            "sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap=sleep 1"
        )
        wait_for(lambda: run.status().attempt == 2, "the second attempt", 240)
    wait_for(lambda: run.status().state is State.succeeded, "the end", 400)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    job = queue_job(run, run.status().attempt)
    assert job is not None
    assert max(project.losses(run, "sampler_gap").values()) < 1e-5
    attempt = 2 if preempted else 1
    found = record(run, attempt=attempt)
    assert found is not None
    assert "127.0.0.1" not in found.url
    rank: Any = read_json(run.heartbeat(0))
    nodes = cluster.run("scontrol", "show", "job", job)
    assert "NumNodes=2" in nodes, nodes
    assert rank["host"]
    wait_for(lambda: is_gone(run), "the end of the server")


def test_of_two_servers_the_other_goes_on(here):
    words = ("rollout.servers=2", "train.steps=8", *words_of("stand-in"))
    started = start(here, "two", *words)
    run = here.folder_of("two")
    started.wait_until(lambda: (run.rollouts / "step-00000001.jsonl").exists(), "two rollouts")
    found = [record(run, number) for number in range(2)]
    assert len({own.url for own in found if own}) == 2
    assert found[1] is not None
    os.kill(found[1].pid, signal.SIGKILL)
    done = started.end()
    assert done.code == ExitCode.ok, done.output
    assert max(project.losses(run, "sampler_gap").values()) < 1e-5
    assert is_gone(run, 0)
    assert is_gone(run, 1)
