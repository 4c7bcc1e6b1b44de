"""The test suite's own tools: a guard that never fires guards nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from support import draws, zygote
from support.project import is_alive
from support.ranks import Finished, environment

CONFTEST = Path(__file__).parent / "conftest.py"

LEAKY = """
import os, subprocess, sys, threading, time
import pytest

def test_clean(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "1")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", ""], check=True)
    thread = threading.Thread(target=int)
    thread.start()

def test_environment():
    os.environ["LEFT"] = "1"

def test_folder(tmp_path):
    os.chdir(tmp_path)

def test_child():
    subprocess.Popen(["sleep", "60"])

def test_orphan():
    subprocess.run(["setsid", "--fork", "sleep", "61"], check=True)

def test_thread():
    threading.Thread(target=time.sleep, args=(2,), name="left").start()

def test_after():
    assert "LEFT" not in os.environ
"""


@pytest.mark.slow
def test_a_test_that_leaks_fails_and_is_mended(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONFTEST.parent))
    pytester.makeconftest(CONFTEST.read_text() + "\nleaks.GRACE_S = 0.2\n")
    pytester.makepyfile(LEAKY)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=7, errors=5)
    result.stdout.fnmatch_lines_random(
        [
            "the test left behind: environment variable LEFT",
            "the test left behind: working directory *",
            "the test left behind: process *: sleep 60",
            "the test left behind: process *: sleep 61",
            "the test left behind: thread left",
        ]
    )


#: Runs pytest as on a machine that has what training needs, and none of the rest.
BARE = """
import sys
import pytest

class Bare:
    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self):
        sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))

words = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", *sys.argv[2:]]
sys.exit(pytest.main(words, plugins=[Bare()]))
"""
#: For the service, for sweeps, for data reports and for other tests.
EXTRAS = "fastapi,starlette,uvicorn,sqlalchemy,alembic,prometheus_client,psycopg,optuna,datasets,"
EXTRAS += "sklearn,ftfy,rensa,py3langid,jsonschema,rouge_score,sacrebleu,tensorboard,lm_eval,"
EXTRAS += "hypothesis,openai,playwright,bitsandbytes,llguidance"


@pytest.mark.slow
def test_gpu_tests_need_no_extra() -> None:
    command = [sys.executable, "-c", BARE, EXTRAS, "--collect-only", "-q", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(
        command,
        cwd=CONFTEST.parents[1],
        env=environment(LAUNCHER_TESTS_ZYGOTE=""),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files == {f"tests/gpu/{path.name}" for path in CONFTEST.parent.glob("gpu/test_*.py")}


def test_what_is_on_the_path_of_this_process_stays_on_that_of_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/packages")
    assert "/opt/packages" in environment()["PYTHONPATH"].split(os.pathsep)


def test_tiny_llama_trains_on_what_the_assistant_says(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi 🙂"}, {"role": "assistant", "content": "Hello."}],
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
    )
    learned = encoded["input_ids"][0][encoded["assistant_masks"][0].bool()]
    assert tokenizer.decode(learned) == "Hello.<|end|>"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert model(encoded["input_ids"]).logits.shape[-1] == len(tokenizer)


def test_quick_tests_take_a_part() -> None:
    first, second, third = draws.some("abc", "b")
    assert second == "b"
    assert [param.marks[0].name for param in (first, third)] == ["slow", "slow"]
    with pytest.raises(AssertionError, match="no such names"):
        draws.some("abc", "d")
    before = hypothesis.settings.get_current_profile_name()
    try:
        hypothesis.settings.load_profile("quick")
        assert (draws.examples(20), draws.examples(500)) == (20, 25)
        hypothesis.settings.load_profile("whole")
        assert draws.examples(500) == 500
    finally:
        hypothesis.settings.load_profile(before)


RANK = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
sys.stdout.write(f"rank {dist.get_rank()} of {int(total)} threads {torch.get_num_threads()}\\n")
sys.stdout.flush()
dist.destroy_process_group()
if "hang" in sys.argv:
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.mark.slow
def test_ranks_run_together(run_ranks: Callable[..., Finished], tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    output = run_ranks(script, "fail", exit_code=1).output
    assert {line for line in output.splitlines() if line.startswith("rank")} == {
        "rank 0 of 2 threads 1",
        "rank 1 of 2 threads 1",
    }
    with pytest.raises(AssertionError, match="not finished after"):
        run_ranks(script, "hang", timeout_s=8)


FORKED = Path(__file__).parent / "support" / "forked.py"


def _start(
    *words: str, folder: Path, before: tuple[str, ...] = (), **environ: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, str(FORKED), *words],
        env=environment(MINE="1", **environ),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o027,
    )


@pytest.fixture(scope="module")
def _zygote_is_here() -> None:
    """Nothing to be tested on a machine with a GPU."""
    if zygote.VARIABLE not in os.environ:
        pytest.skip("no forks where there are GPUs")


@pytest.mark.slow
@pytest.mark.usefixtures("_zygote_is_here")
@pytest.mark.parametrize(
    "environ",
    [{}, {zygote.VARIABLE: ""}, {"HF_HOME": "/else"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_fork_is_what_a_real_start_is(tmp_path: Path, environ: dict[str, str]) -> None:
    with _start("exit", "a b", folder=tmp_path, **environ) as process:
        output, errors = process.communicate("typed")
    said = json.loads(output)
    assert (process.returncode, errors) == (7, "")
    assert said.pop("is_forked") is not bool(environ)
    assert (said.pop("pid") == process.pid) is bool(environ)
    assert said.pop("path")[0] == str(FORKED.parent)
    assert said == {
        "argv": [str(FORKED), "exit", "a b"],
        "folder": str(tmp_path),
        "mine": "1",
        "umask": 0o027,
        "stdin": "typed",
        "host": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("_zygote_is_here")
def test_a_fork_is_on_the_host_of_who_asked_for_it(tmp_path: Path) -> None:
    before = ("unshare", "--net", "--uts", "--mount", "--ipc")
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    named = (*before, "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
    with _start("exit", folder=tmp_path, before=named) as process:
        said = json.loads(process.communicate("")[0])
    assert said["is_forked"]
    assert (said["host"], said["interfaces"]) == ("elsewhere", ["lo"])
    assert said["folder"] == str(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_zygote_is_here")
@pytest.mark.parametrize(
    ("word", "code", "last"),
    [
        ("kill", -signal.SIGTERM, ""),
        ("raise", 1, "ValueError: so it is"),
        ("interrupted", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_fork_ends_as_a_real_start_does(tmp_path: Path, word: str, code: int, last: str) -> None:
    with _start(word, folder=tmp_path) as process:
        output, errors = process.communicate("")
    assert json.loads(output)["is_forked"]
    assert (process.returncode, errors.strip().rpartition("\n")[2]) == (code, last)


@pytest.mark.slow
@pytest.mark.usefixtures("_zygote_is_here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_fork(tmp_path: Path, number: signal.Signals) -> None:
    with _start("wait", folder=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        pid = json.loads(process.stdout.readline())["pid"]
        assert pid != process.pid
        process.send_signal(number)
        assert process.wait(30) == -number
        _await_end(pid)


def _await_end(pid: int) -> None:
    end = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("_zygote_is_here")
def test_forks_that_die_together_with_who_asked_for_them_do_no_harm(tmp_path: Path) -> None:
    with ExitStack() as started:
        askers = [started.enter_context(_start("wait", folder=tmp_path)) for _ in range(3)]
        forks = []
        for asker in askers:
            assert asker.stdin is not None
            assert asker.stdout is not None
            asker.stdin.close()
            forks.append(json.loads(asker.stdout.readline())["pid"])
        status = Path(f"/proc/{forks[0]}/status").read_text()
        parent = int(status.partition("PPid:")[2].split()[0])
        os.kill(parent, signal.SIGSTOP)  # so that it hears of all of them at once
        try:
            for pid in forks:
                os.kill(pid, signal.SIGKILL)
                _await_end(pid)
            for asker in askers:
                asker.kill()
                asker.wait(30)
        finally:
            os.kill(parent, signal.SIGCONT)
    with _start("exit", folder=tmp_path) as process:
        assert json.loads(process.communicate("")[0])["is_forked"]
