"""The command line as a user meets it: in a process of its own, by its output and exit code."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import VERBS, arguments, main
from launcher.config.compose import groups
from launcher.config.schema import conversion
from launcher.core import processes, registry
from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import child_environment, cpu_count

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")


def launcher(*words: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *words]
    environment = child_environment(PYTHONPATH=str(ROOT))
    defaults = {"capture_output": True, "text": True, "env": environment, "timeout": 120}
    return subprocess.run(command, cwd=cwd, **{**defaults, **options})


def cpu_seconds(*words: str, cwd: Path, code: int = 0) -> float:
    """CPU time of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = launcher(*words, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "budget_s", "code"),
    [
        (["--help"], 0.15, 0),
        (["status"], 0.15, 0),
        (["train", "--help"], 0.15, 0),
        (["config", *WORDS], 0.5, 0),
        (["plan", *WORDS], 0.5, 0),
        (["train", *WORDS, "engine.precision=fp16"], 0.5, 2),
    ],
    ids=["help", "status", "train-help", "config", "plan", "train-impossible"],
)
def test_start_up_cost(tmp_path, words, budget_s, code):
    # Busy neighbours make the same work cost more CPU time: one good measurement is enough, and a
    # machine with more work than CPUs gets more slack.
    slack = 1.1 if os.getloadavg()[0] <= cpu_count() else 1.8
    taken = []
    for _ in range(10):
        taken.append(cpu_seconds(*words, cwd=tmp_path, code=code))
        if taken[-1] <= budget_s * slack:
            return
    pytest.fail(f"{min(taken):.2f} s CPU, at best; the budget is {budget_s} s")


@pytest.mark.parametrize("words", [["--help"], ["status"], ["config", *WORDS], ["plan", *WORDS]])
def test_no_heavy_library_is_imported(tmp_path, words):
    heavy = ["torch", "numpy", "transformers", "deepspeed", "peft", "datasets", "wandb", "rich"]
    code = (
        "import sys\nfrom launcher.cli import main\n"
        f"code = main({words!r})\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded or code else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=child_environment(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr


def test_every_verb_resolves_and_has_help(capsys):
    for verb, (_, function) in VERBS.items():
        registry.load(function)
        with pytest.raises(SystemExit) as exit_:
            main([*verb.split(), "--help"])
        assert exit_.value.code == 0
        assert f"launcher {verb}" in capsys.readouterr().out


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert main([]) == ExitCode.usage


def test_train_help_lists_groups_options_and_keys(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    shown = text.split()
    for group, options in groups.list_groups().items():
        is_cut = f"({len(options) - 12} more)"
        assert not options or {group, options[0], options[-1]} <= set(shown)
        assert {*options} <= set(shown) or is_cut in text
    assert set(arguments.KEYS) <= set(shown)


def test_keys_in_help_exist():
    assert set(arguments.KEYS) <= set(conversion.leaves())


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "'train'"),
        (["data", "prepair"], "'data prepare'"),
        (["config", "modle=tiny"], "model"),
        (["config", "model=tini"], "tiny"),
        (["config", "optim.lrr=1"], "optim.lr"),
        (["config", "--explain", "optim.lrr"], "optim.lr"),
        (["status", "nosuch"], "no runs under"),
    ],
    ids=" ".join,
)
def test_typo_is_a_usage_error_with_a_hint(tmp_path, monkeypatch, capsys, words, hint):
    monkeypatch.chdir(tmp_path)
    assert main(words) == ExitCode.usage
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert hint in shown.err.partition("HINT:")[2]


def test_all_problems_are_reported_at_once_and_no_run_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["optim.lrr=1", "train.steps=many", "engine.precision=fp16", "launch.processes=3"]
    assert main(["train", *WORDS, *words]) == ExitCode.usage
    shown = capsys.readouterr().err
    for key in ("optim.lrr", "train.steps", "engine.precision", "batch"):
        assert f"error: {key}" in shown
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["status", "--jsno"])
    assert exit_.value.code == ExitCode.usage


def test_unexpected_error_is_internal_and_asks_for_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VERBS, "status", ("", "launcher.no_such_module:status"))
    assert main(["status"]) == ExitCode.internal
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "report it" in shown.splitlines()[-1]


@pytest.mark.parametrize(("verb", "said"), [("status", ""), ("export", "Ctrl-C\n")])
def test_interrupt_has_its_own_exit_code_and_is_said_where_work_ends(
    monkeypatch, capsys, verb, said
):
    monkeypatch.setitem(VERBS, verb, ("", "_thread:interrupt_main_now"))
    monkeypatch.setattr("_thread.interrupt_main_now", _interrupt, raising=False)
    assert main([verb]) == ExitCode.interrupted
    assert capsys.readouterr().err == said


def _interrupt(*_: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["begin", "spec"])
def test_interrupt_before_a_run_is_handed_over_is_said_and_written(
    monkeypatch, capsys, tmp_path, moment
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"launcher.runs.start.{moment}", _interrupt)
    assert main(["train", *WORDS, "run.name=r"]) == ExitCode.interrupted
    said = "Ctrl-C: r was not started; `launcher resume r` starts it\n"
    assert capsys.readouterr().err.endswith(said)
    status = RunDir("runs/r").status()
    assert (status.state, status.reason) == (State.cancelled, "Ctrl-C before its start")


def test_a_supervisor_that_nobody_waits_for_any_more_does_not_begin(monkeypatch, capsys, tmp_path):
    def stop(path: Path) -> None:
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.launch.local.read_json", stop)
    before = processes.descendants(os.getpid())  # helpers that other tests have left to Python
    assert main(["submit", *WORDS, "run.name=r"]) == ExitCode.interrupted
    assert set(processes.descendants(os.getpid())) <= set(before)
    said = "SIGTERM: r was not started; `launcher resume r` starts it\n"
    assert capsys.readouterr().err.endswith(said)
    status = RunDir("runs/r").status()
    assert (status.state, status.reason) == (State.cancelled, "SIGTERM before its start")


@pytest.mark.slow
def test_reader_that_goes_away_is_no_error(tmp_path):
    for number in range(3000):
        run = tmp_path / "runs" / f"a-rather-long-name-of-a-run-{number}"
        run.mkdir(parents=True)
        (run / "status.json").write_text('{"state": "failed", "host": "elsewhere"}')
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as closed:
        done = launcher("status", cwd=tmp_path, capture_output=False, stdout=closed, stderr=-1)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["plan", *WORDS], 0),
        (["logs", "r"], 0),
        (["logs", "-f", "r"], 0),  # the run goes on
        (["data", "prepare", *WORDS], 130),
        (["train", *WORDS], 130),
        (["sweep", "resume", "s"], 130),
    ],
    ids=["help", "plan", "logs", "logs-f", "prepare", "train", "sweep"],
)
def test_work_that_its_reader_left_is_no_success(monkeypatch, words, code):
    def left(rest: list[str]) -> int:
        raise BrokenPipeError

    for verb, (text, _) in list(VERBS.items()):
        monkeypatch.setitem(VERBS, verb, (text, "nowhere"))
    monkeypatch.setattr("launcher.cli.registry.load", lambda _: left)
    monkeypatch.setattr("launcher.cli._overview", lambda: left([]))
    monkeypatch.setattr("launcher.cli.streams.discard", lambda *streams: None)
    assert main(words) == code


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["plan", "--help"],
        ["plan", *WORDS],
        ["config", *WORDS],
        ["completion", "bash"],
        ["submit", *WORDS, "--dry-run"],
        ["status", "--json"],
        ["data", "prepare", "data.train=x.jsonl", *WORDS[::2]],
        ["data", "report", "data.train=x.jsonl", *WORDS[::2]],
        ["data", "show", "data.train=x.jsonl", *WORDS[::2]],
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_cannot_be_written_are_said_so(tmp_path, words, unbuffered):
    (tmp_path / "x.jsonl").write_text('{"text": "a b c"}\n' * 20)
    environment = child_environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED=unbuffered)
    options = {"capture_output": False, "stderr": -1, "cwd": tmp_path, "env": environment}
    with open("/dev/full", "w") as full:
        done = launcher(*words, stdout=full, **options)
    said = "error: standard output: cannot be written: No space left on device\n  HINT: "
    assert (done.returncode, said in done.stderr) == (ExitCode.storage, True), done.stderr
    assert "Traceback" not in done.stderr
    done = launcher(*words, preexec_fn=lambda: os.close(1), **options)
    said = "error: standard output: cannot be written: Bad file descriptor"
    assert (done.returncode, said in done.stderr) == (ExitCode.storage, True), done.stderr


@pytest.mark.slow
def test_messages_that_cannot_be_written_change_no_exit_code(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full", "w") as full, open(write_end, "w") as unread:
        for words, code in ((["plan", "modle=x"], 2), (["plan", "--modle"], 2)):
            for stderr in (full, unread):
                done = launcher(*words, cwd=tmp_path, capture_output=False, stderr=stderr)
                assert done.returncode == code
    done = launcher("plan", "modle=x", cwd=tmp_path, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (2, "")
    # Of a closed stream no file takes the place, and what there is to say still is.
    all_but_stdout = lambda: os.closerange(2, 3) or os.close(0)  # noqa: E731
    done = launcher("plan", *WORDS, cwd=tmp_path, preexec_fn=all_but_stdout)
    assert (done.returncode, done.stdout.count("\n")) == (0, 6)


def test_a_run_is_submitted_whoever_reads_its_name(tmp_path, monkeypatch, capsys):
    run = RunDir(tmp_path / "runs" / "r")
    monkeypatch.setattr("launcher.cli.runs._new_run", lambda *_: (run, 1))
    monkeypatch.setattr("launcher.runs.start.submit", lambda *_, **__: None)
    assert main(["submit", *WORDS]) == ExitCode.ok
    assert capsys.readouterr().out == "r\n"
    monkeypatch.setattr("launcher.core.streams.discard", lambda *streams: None)
    monkeypatch.setattr("builtins.print", _no_reader)
    assert main(["submit", *WORDS]) == ExitCode.ok


def _no_reader(*words, **options):
    raise BrokenPipeError


@pytest.mark.slow
def test_a_run_whose_reader_is_gone_before_its_start_is_cancelled(tmp_path):
    read_end, write_end = os.pipe()
    words = ["train", *WORDS, "train.steps=1", "run.name=r", "eval=none"]
    with open(write_end, "w") as closed:
        command = [sys.executable, "-m", "launcher.cli", *words]
        environment = child_environment(PYTHONPATH=str(ROOT))
        process = subprocess.Popen(command, cwd=tmp_path, stderr=closed, env=environment)
        os.read(read_end, 1)  # the plan is shown, the run may be made by now
        os.close(read_end)
    assert process.wait(100) in (ExitCode.interrupted, ExitCode.preempted)
    run = RunDir(tmp_path / "runs" / "r")
    assert not run.exists() or run.status().state in (State.cancelled, State.preempted)


def test_config_prints_yaml_json_and_explanation(capsys):
    import yaml

    assert main(["config", *WORDS, "optim.lr=0.5"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert main(["config", "--json", *WORDS, "optim.lr=0.5"]) == 0
    assert json.loads(capsys.readouterr().out) == resolved
    assert resolved["optim"]["lr"] == 0.5
    assert main(["config", *WORDS, "optim.lr=0.5", "--explain", "optim.lr"]) == 0
    assert "override optim.lr=0.5" in capsys.readouterr().out
    assert main(["config", "--json", "--explain", "seed"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["value"] == 0


def test_config_says_on_stderr_what_keeps_it_from_running(capsys):
    assert main(["config", *WORDS]) == 0
    assert capsys.readouterr().err == ""
    assert main(["config", *WORDS, "experiment=lora", "eval=none"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("run:\n") or "\noptim:\n" in out
    assert "as it is, it cannot be run:\ntrain.early_stop.patience: 3 with eval=none" in err


def test_config_prints_the_deepspeed_dict(capsys):
    assert main(["config", "--deepspeed", *WORDS, "engine=zero3", "launch.processes=2"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["zero_optimization"]["stage"] == 3
    assert made["train_batch_size"] == 8
    assert "auto" not in json.dumps(made).split('"')


def test_config_dir_adds_options(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    assert main(["config", "--json", "experiment=mine", "--config-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 77


def test_plan_prints_numbers(capsys):
    words = [*WORDS, "launch.processes=2", "train.steps=4"]
    assert main(["plan", "--json", *words]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["world_size"] * made["micro_batch"] * made["accumulation"] == 8
    assert made["memory"]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert "4 steps" in shown
    assert "memory" in shown


def test_status_prints_a_table_or_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    run = RunDir("runs/a")
    run.path.mkdir(parents=True)
    run.set_status(State.failed, exit_code=3, reason="bad data", attempt=1)
    assert main(["status"]) == 0
    assert "bad data" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["exit_code"]) == ("a", "failed", 3)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "launcher completion --words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["da"], ["data"]),
        (["s", "data"], ["show"]),
        (["model=ti", "train"], ["model=tiny"]),
        (["optim.l", "data", "prepare"], ["optim.lr="]),
        (["data.packing=", "plan"], ["data.packing=true", "data.packing=false"]),
    ],
)
def test_completions(words, expected, capsys):
    assert main(["completion", "--words", *words]) == 0
    assert capsys.readouterr().out.split() == expected
