"""Faults of numbers, memory, disk and input: the exit code is right and nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess

import pytest

from launcher.core.errors import ExitCode
from launcher.core.rundir import State
from launcher.model.checkpoint import newest_valid
from support import hints, project
from support.chats import GEMMA, chat
from support.models import make_llama, make_tokenizer
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project

pytestmark = pytest.mark.slow

TRAIN = (*LAUNCHER, "train")
RESUME = (*LAUNCHER, "resume")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("faults") / "model")


@pytest.fixture
def here(tmp_path, model):
    made = Project(tmp_path, model)
    made.write_data(project.conversations(60))
    return made


# ---- numbers


@pytest.fixture
def poisoned(tmp_path):
    """A model in which the embedding of `~` is infinite, and data in which line 7 alone has one."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    made = Project(tmp_path)
    llama = LlamaForCausalLM.from_pretrained(made.model)
    (token,) = AutoTokenizer.from_pretrained(made.model).encode("~", add_special_tokens=False)
    llama.get_input_embeddings().weight.data[token] = float("inf")
    llama.save_pretrained(made.model)
    records = project.conversations(8)
    records[6] = chat("What is ~?", "It is a tilde.")
    made.write_data(records)
    return made


#: Four steps an epoch; the last batch of the first epoch holds line 7.
NUMBERS = (
    *("data.packing=false", "data.shuffle=false", "batch.sequences=2", "train.steps=6"),
    *("launch.processes=2", "checkpoint.every_steps=1", "checkpoint.keep_last=9"),
)


def test_infinite_loss_stops_and_names_step_rank_and_record(poisoned):
    done = poisoned.run(TRAIN, *poisoned.words("stop", *NUMBERS))
    assert done.code == ExitCode.diverged, done.output
    run = poisoned.folder_of("stop")
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.diverged)
    bad = "rank 0: data.jsonl:7\n"
    assert f"loss is not finite at step 4; records of the batch: {bad}" in status.reason
    assert "HINT" in done.output
    assert list(project.checkpoint_files(run)) == [1, 2, 3]
    assert list(project.losses(run)) == [1, 2, 3]


def test_infinite_loss_is_skipped_on_wish(poisoned):
    words = poisoned.words("skip", *NUMBERS, "train.on_nonfinite=skip")
    done = poisoned.run(TORCHRUN, *words)
    assert done.code == ExitCode.ok, done.output
    run = poisoned.folder_of("skip")
    assert "step 4: non-finite gradient, step skipped" in done.output
    assert done.output.count("step skipped") == 1
    losses = project.losses(run)
    assert all(0 < losses[step] < 20 for step in (1, 2, 3, 5, 6))
    files = project.checkpoint_files(run)
    weights = [files[step]["weights-rank-00000.safetensors"] for step in (3, 4, 5)]
    assert weights[0] == weights[1] != weights[2]


# ---- memory


def test_out_of_memory_says_what_to_change(here):
    here.write_data([chat("Count.", "one two three " * 15000)])
    words = here.words(
        *("memory", "model.attention=eager", "data.packing=false", "data.max_length=200000"),
        *("batch.sequences=1", "train.steps=2"),
    )
    # The mask of 150,012 tokens needs 22 GB, more than the process may have.
    done = here.run(TRAIN, *words, address_space=12 << 30)
    assert done.code == ExitCode.out_of_memory, done.output
    status = here.folder_of("memory").status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.out_of_memory)
    assert "batch.micro=1" in status.reason
    assert "HINT" in done.output


# ---- disk


def mount(folder, *options):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stderr.strip()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own for the run folders, with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root, to mount a small tmpfs")
    problem = mount(folder, "size=1250k")
    if problem:
        pytest.skip(f"cannot mount a tmpfs here: {problem}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_during_a_checkpoint_then_more_room_then_read_only(here, small_disk):
    words = ("run.root=disk", "batch.sequences=2", "train.steps=8", "launch.processes=2")
    often = ("checkpoint.every_steps=2", "checkpoint.keep_last=9")
    done = here.run(TRAIN, *here.words("full", *words, *often))
    assert done.code == ExitCode.storage, done.output
    run = here.folder_of("full", "disk")
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.storage)
    assert "No space left on device" in status.reason
    assert "HINT: free space" in done.output
    assert "then resume the run" in done.output
    before = project.checkpoint_files(run)
    assert list(before) == [2, 4]
    assert not list(run.checkpoints.glob(".writing-*"))

    assert mount(small_disk, "remount", "size=32m") == ""
    done = here.run(RESUME, "disk/full")
    assert done.code == ExitCode.ok, done.output
    assert "resuming from step 4" in done.output
    after = project.checkpoint_files(run)
    assert list(after) == [2, 4, 6, 8]
    assert {step: after[step] for step in before} == before
    assert list(project.losses(run)) == list(range(1, 9))

    assert mount(small_disk, "remount", "ro") == ""
    for command in (TRAIN, DIRECT):
        done = here.run(command, *here.words("other", *words[:3]))
        assert done.code == ExitCode.storage, done.output
        assert "HINT: the file system is read-only" in done.output
        assert "Traceback" not in done.output


def test_second_process_is_refused_and_damaged_checkpoint_is_passed_over(here):
    endless = ("batch.sequences=2", "train.steps=1000000", "train.log_every_steps=1000")
    often = ("checkpoint.every_steps=20", "checkpoint.keep_last=3")
    running = here.start(TRAIN, *here.words("r", *endless, *often))
    run = here.folder_of("r")
    running.wait_until(lambda: len(project.checkpoint_files(run)) == 3, "three checkpoints")
    for command in ((*DIRECT, "runs/r"), (*RESUME, "r")):
        done = here.run(command)
        assert done.code == ExitCode.storage, done.output
        assert "another process works on this run" in done.output
        assert "HINT" in done.output
    status = run.status()
    assert (status.state, status.attempt) == (State.running, 1)
    newest = max(project.checkpoint_files(run))
    running.wait_until(lambda: max(project.checkpoint_files(run)) > newest, "another checkpoint")
    running.process.send_signal(signal.SIGINT)
    assert running.end().code == ExitCode.preempted

    files = project.checkpoint_files(run)
    older, newest = list(files)[-2:]
    path = run.checkpoints / f"step-{newest:08d}" / "weights-rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    resumed = here.start(RESUME, "r")
    resumed.wait_until(lambda: f"resuming from step {older}" in resumed.output, "the resume")
    resumed.wait_until(lambda: max(project.checkpoint_files(run)) > newest, "a newer checkpoint")
    resumed.process.send_signal(signal.SIGINT)
    done = resumed.end()
    assert done.code == ExitCode.preempted, done.output
    assert f"warning: skipping the damaged checkpoint step-{newest:08d}" in done.output
    assert "weights-rank-00000.safetensors has changed" in done.output


#: A model whose checkpoint takes long enough to be met in the middle.
SLOW_TO_SAVE = (
    *("model=tiny", "model.hidden_size=768", "model.layers=6", "data.max_length=32"),
    *("batch.sequences=1", "train.steps=5", "checkpoint.every_steps=1", "checkpoint.keep_last=9"),
    *("launch.processes=1", "data=text", "objective=text", "data.limit=64"),
)


def test_training_goes_on_while_a_checkpoint_is_written(here):
    words = [word for word in here.words("r") if not word.startswith(("model.", "data."))]
    data = ("data.train=builtin:quickstart-text", "data.validation_share=0")
    slow = [*SLOW_TO_SAVE, "train.steps=12", "checkpoint.every_steps=4"]
    done = here.run(TRAIN, *words, *data, *slow)
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of("r")
    assert list(project.checkpoint_files(run)) == [4, 8, 12]
    lines = map(json.loads, run.metrics.read_text().splitlines())
    ends = {line["step"]: line["time"] for line in lines if line["kind"] == "train"}
    manifest = run.checkpoints / "step-00000004" / "manifest.json"
    assert ends[5] < manifest.stat().st_mtime < ends[9]
    assert newest_valid(run, pytest.fail).step == 12


def test_a_stop_in_the_middle_of_a_checkpoint_leaves_none_that_is_half(here):
    run = here.folder_of("r")
    words = [word for word in here.words("r") if not word.startswith(("model.", "data."))]
    data = ("data.train=builtin:quickstart-text", "data.validation_share=0")

    def saves(step: int) -> list[object]:
        return [*run.checkpoints.glob(f".writing-step-{step:08d}/weights-*")]

    running = here.start(TRAIN, *words, *data, *SLOW_TO_SAVE)
    running.wait_until(lambda: saves(2), "a checkpoint that is being written")
    running.process.send_signal(signal.SIGINT)
    # Two signals of a kind at once would be one.
    running.wait_until(lambda: "Ctrl-C again" in running.output, "an answer to the first")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == ExitCode.interrupted, done.output
    whole = max(project.checkpoint_files(run))
    assert whole in (1, 2)  # the disk may have been faster than this test
    assert f"HINT: `launcher resume r` goes on from step {whole}\n" in done.output
    (words,) = hints.commands(done.output[done.output.rindex("HINT") :])

    # Asked once: the checkpoint that is being written is whole, and the last thing that is done.
    running = here.start(LAUNCHER, *words)
    running.wait_until(lambda: saves(whole + 2), "another checkpoint")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == ExitCode.preempted, done.output
    assert f"resuming from step {whole}" in done.output
    assert not list(run.checkpoints.glob(".writing-*"))
    newest = max(project.checkpoint_files(run))
    assert newest in (whole + 2, whole + 3)
    assert f"stopped by Ctrl-C at step {newest}" in done.output
    assert newest_valid(run, pytest.fail).step == newest


def test_a_rank_killed_or_all_asked_to_stop_while_they_write_leave_the_last_whole_one(here):
    run = here.folder_of("r")
    words = [word for word in here.words("r") if not word.startswith(("model.", "data."))]
    data = ("data.train=builtin:quickstart-text", "data.validation_share=0")
    two = ("launch.processes=2", "batch.sequences=2", "engine=zero2", "train.steps=8")

    def saves(step: int) -> list[object]:
        return [*run.checkpoints.glob(f".writing-step-{step:08d}/optimizer-*")]

    running = here.start(TRAIN, *words, *data, *SLOW_TO_SAVE, *two)
    running.wait_until(lambda: saves(2), "a checkpoint that is being written")
    project.kill_rank(run, 1, signal.SIGKILL)
    done = running.end()
    assert done.code == ExitCode.internal, done.output
    assert "rank 1 was killed by SIGKILL" in run.status().reason
    whole = newest_valid(run, pytest.fail).step
    assert whole in (1, 2)  # the disk may have been faster than this test

    running = here.start(RESUME, "r")
    running.wait_until(lambda: saves(whole + 2), "another checkpoint")
    running.process.send_signal(signal.SIGTERM)
    done = running.end()
    assert done.code == ExitCode.preempted, done.output
    assert f"resuming from step {whole}" in done.output
    assert not list(run.checkpoints.glob(".writing-*"))
    newest = newest_valid(run, pytest.fail).step
    assert newest in (whole + 2, whole + 3)

    done = here.run(RESUME, "r")
    assert done.code == ExitCode.ok, done.output
    assert f"resuming from step {newest}" in done.output
    assert newest_valid(run, pytest.fail).step == 8


# ---- input


def line(number, content):
    """Put `content` in place of a line of data.jsonl."""

    def spoil(here):
        path = here.folder / "data.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[number - 1] = content + b"\n"
        path.write_bytes(b"".join(lines))

    return spoil


def messages(*turns):
    content = [{"role": role, "content": text} for role, text in turns]
    return json.dumps({"messages": content}).encode()


def no_file(here):
    (here.folder / "data.jsonl").unlink()


def empty_file(here):
    (here.folder / "data.jsonl").write_bytes(b"")


def no_template(here):
    here.model = shutil.copytree(here.model, here.folder / "model")
    with contextlib.suppress(FileNotFoundError):
        (here.model / "chat_template.jinja").unlink()
    make_tokenizer(here.model, chat_template=None)


def no_model_config(here):
    here.model = shutil.copytree(here.model, here.folder / "model")
    (here.model / "config.json").unlink()


def strict_roles(here):
    here.model = shutil.copytree(here.model, here.folder / "model")
    make_tokenizer(here.model, chat_template=GEMMA)
    line(5, messages(("user", "a"), ("user", "b"), ("assistant", "c")))(here)


@pytest.mark.parametrize(
    ("spoil", "code", "expected"),
    [
        (no_file, ExitCode.data, "data.jsonl"),
        (empty_file, ExitCode.data, "data.jsonl: the file is empty"),
        (line(3, b'{"messages": ['), ExitCode.data, "data.jsonl:3: broken JSON"),
        (line(53, b'{"messages": ['), ExitCode.data, "data.jsonl:53: broken JSON"),
        (line(54, messages(("user", "hm?"))), ExitCode.data, "data.jsonl:54: "),
        (line(59, b'{"messages": "\xff\xfe"}'), ExitCode.data, "data.jsonl:59: "),
        (no_template, ExitCode.usage, "model.chat_template"),
        (no_model_config, ExitCode.usage, "model.name"),
        (strict_roles, ExitCode.data, "data.jsonl:5: "),
    ],
    ids=[
        *("missing file", "empty file", "broken JSON at first", "broken JSON"),
        *("no assistant turn", "invalid UTF-8"),
        *("no chat template", "no model config", "refused role order"),
    ],
)
def test_bad_input(here, spoil, code, expected):
    spoil(here)
    words = ("data=chat", "batch.sequences=2", "train.steps=2")
    done = here.run(TRAIN, *here.words("bad", *words))
    assert done.code == code, done.output
    assert expected in done.output
    assert "HINT" in done.output
    assert "Traceback" not in done.output
    if "data.jsonl:3: " in expected or spoil in (no_file, empty_file, no_model_config):
        # Seen before a run is made.
        assert not here.folder_of("bad").exists()
        return
    status = here.folder_of("bad").status()
    assert (status.state, status.exit_code) == (State.failed, code)
    assert expected in status.reason


def test_bad_input_of_a_direct_launch_settles_the_run_too(here):
    line(3, b'{"messages": [')(here)
    done = here.run(TORCHRUN, *here.words("bad", "batch.sequences=2", "train.steps=2"))
    assert done.code != ExitCode.ok
    assert "data.jsonl:3: broken JSON" in done.output
    status = here.folder_of("bad").status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.data)
    # It took no step, so the name is free for one that is mended.
    here.write_data(project.conversations(8))
    done = here.run(DIRECT, *here.words("bad", "batch.sequences=2", "train.steps=1"))
    assert done.code == ExitCode.ok, done.output
    assert "took no step" in done.output
    assert here.folder_of("bad.1", "runs/.failed").status().exit_code == ExitCode.data
    done = here.run(DIRECT, *here.words("bad", "batch.sequences=2", "train.steps=1"))
    assert "there is a run of this name already" in done.output
