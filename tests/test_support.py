"""The test suite's own tools: a guard that never fires guards nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.ranks import Finished

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
