"""What a run needs before it can start, as plan, a rehearsal and a submission refuse it."""

from __future__ import annotations

import http.server
import inspect
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.schema import variants
from launcher.core import registry
from launcher.runs import requirements

TINY = ("model=tiny", "data.max_length=64", "batch.sequences=2", "launch.processes=1")
TURNS = [{"role": role, "content": "a"} for role in ("user", "assistant")]
LINE = json.dumps({"messages": TURNS}) + "\n"
VERBS = (["plan"], ["plan", "--json"], ["train", "--dry-run"], ["submit", "--dry-run"], ["train"])


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    Path("train.jsonl").write_text(LINE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A hub that answers each path with the status that the test gives it, else 404."""
    answers: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked = self.path + ("?token" if self.headers["Authorization"] else "")
            time.sleep(answers.get("seconds", 0))
            self.send_response(answers.get(asked, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(list(words))
    return code, capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ([*TINY, "data.train=no.jsonl"], 3, "data.train: no such file or folder: no.jsonl"),
        ([*TINY, "data.train=[a.jsonl,train.jsonl,b.jsonl]"], 3, "no such file or folder: b.jsonl"),
        ([*TINY, "data.train='*.csv'"], 3, "data.train: nothing matches *.csv"),
        ([*TINY, "data.train=empty.jsonl"], 3, "empty.jsonl: the file is empty"),
        ([*TINY, "data.train=data.xlsx"], 3, "data.xlsx: files of this ending are not known"),
        ([*TINY, "data.train=some/set"], 3, "data.train: no such file here: some/set"),
        (
            [*TINY, "data.train=train.jsonl", "data.validation=held.jsonl"],
            3,
            "data.validation: no such file or folder: held.jsonl",
        ),
        (["model.name=./m", "data.train=train.jsonl"], 2, "model.name: no such folder: ./m"),
        (["model.name=a/b", "data.train=train.jsonl"], 2, "model.name: a/b is no folder here"),
        (
            ["model.name=hub", "data.train=no.jsonl"],
            2,
            "model.name: there is no config.json in hub",
        ),
        (
            [*TINY, "data.train=train.jsonl", "run.root=train.jsonl"],
            7,
            "train.jsonl: Not a directory",
        ),
    ],
)
def test_what_is_not_here_is_refused_before_anything_is_made(
    verb: list[str],
    words: list[str],
    code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("empty.jsonl", "data.xlsx"):
        Path(name).write_text("" if name == "empty.jsonl" else "x")
    Path("hub").mkdir()
    found, text = said(capsys, *verb, *words)
    assert (found, expected in text) == (code, True), text
    assert not (tmp_path / "runs").exists()


PROMPT = ("data=prompt", "data.columns={prompt: question, completion: answer}")
CLASSES = ("objective=classify", "eval=classify")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["data.train=maths.jsonl"],
            "maths.jsonl:1: no known format has the fields of this record",
        ),
        (["data.train=maths.jsonl", PROMPT[0], "data.columns={prompt: q}"], "no column 'q'"),
        (["data.train=maths.jsonl", *PROMPT, "data.validation=labelled.jsonl"], "labelled.jsonl:1"),
        (["data.train=train.jsonl", "eval.general=maths.jsonl"], "maths.jsonl:1: no known format"),
        (["data.train=labelled.jsonl", *CLASSES, "data.labels=[b]"], "'a' is not in data.labels"),
        (["data.train=train.jsonl", *CLASSES], "classify with chat data"),
        (["data.train=broken.jsonl"], "broken.jsonl:2: "),
        (["data.train=own.jsonl", "data.format=own.py"], "own.jsonl:1: says so itself"),
        (["data.train={path: maths.jsonl, weight: 1}"], "maths.jsonl:1: no known format"),
    ],
)
def test_records_that_preparation_would_stop_at_are_refused(
    words: list[str], expected: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = 'print("hello")\nfrom launcher.data.formats import BadRecord\nclass Format:\n'
    own += '    def read(self, record):\n        raise BadRecord("says so itself")\n'
    files = {
        "maths.jsonl": '{"question": "1+1?", "answer": "2"}\n',
        "labelled.jsonl": '{"text": "x", "label": "a"}\n',
        "broken.jsonl": f"{LINE}{{broken\n",
        "own.jsonl": "{}\n",
        "own.py": own,
    }
    for name, text in files.items():
        Path(name).write_text(text)
    assert main(["train", "--dry-run", *TINY, *words]) == 3
    out, err = capfd.readouterr()
    assert expected in err
    assert "hello" not in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("word", "code", "expected"),
    [
        ("objective.out_of_scope=oos", 3, "0 of 2 held-out records are 'oos'"),
        ("objective.class_weights={c: 2}", 2, "no class is called 'c'"),
    ],
)
def test_what_all_labels_tell_ends_as_preparation_would(
    word: str, code: int, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (json.dumps({"text": f"x {i}", "label": "ab"[i % 2]}) + "\n" for i in range(70))
    Path("train.jsonl").write_text("".join(lines))
    Path("held_out.jsonl").write_text("".join(Path("train.jsonl").read_text().splitlines(True)[:2]))
    files = ("data.train=train.jsonl", "data.validation=held_out.jsonl")
    assert main(["train", "--dry-run", *TINY, *CLASSES, *files, word]) == code
    assert expected in capfd.readouterr().err


@pytest.mark.thorough
def test_records_that_fit_or_are_to_be_skipped_are_planned_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("maths.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    assert said(capsys, "plan", *TINY, "data.train=maths.jsonl", *PROMPT)[0] == 0
    Path("broken.jsonl").write_text(f"{LINE}{{broken\n")
    skipping = ("data.train=broken.jsonl", "data.bad_records=skip")
    assert said(capsys, "plan", *TINY, *skipping)[0] == 0


@pytest.mark.thorough
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_folder_in_which_nothing_can_be_made_is_refused(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, *verb, *TINY, "data.train=train.jsonl", "run.root=/proc/x")
    assert (code, "/proc/x: no folder can be made in /proc" in text) == (7, True), text
    assert "HINT: " in text


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("tensorboard", ["track=tensorboard"]),
        ("wandb", ["track=wandb"]),
        ("sacrebleu", ["eval.metrics=[bleu]", "data.validation=train.jsonl"]),
        ("rouge_score", ["eval.metrics=[rougeL]", "data.validation=train.jsonl"]),
        ("pyarrow", ["data.train=x.parquet"]),
        ("zstandard", ["data.train=x.jsonl.zst"]),
        ("datasets", ["data.train=some/set"]),
        ("fsspec", ["data.train=memory://x.jsonl"]),
        ("rensa", ["data.gate=[default]"]),
        ("sklearn", ["data.gate=[default]"]),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    package: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("x.parquet", "x.jsonl.zst"):
        Path(name).write_text("x")
    monkeypatch.setitem(sys.modules, package, None)
    code, text = said(capsys, "plan", *TINY, "data.train=train.jsonl", *words)
    assert code in (2, 3)
    assert re.search(rf"needs (the package )?{package}, which is not installed", text), text
    name = "scikit-learn" if package == "sklearn" else package.replace("_", "-")
    assert f"HINT: pip install '{name}" in text


def test_optuna_is_asked_for_before_a_sweep_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = (*TINY, "data.train=train.jsonl", "sweep=optuna", "peft.rank=4,8", "peft=lora")
    code, text = said(capsys, "train", "-m", "--dry-run", *words)
    assert code == 2
    assert "sweep: Optuna is not installed\n  HINT: pip install 'optuna>=" in text
    assert not (tmp_path / "runs").exists()


def test_a_sweep_of_which_no_trial_has_its_data_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("train", "-m", "--dry-run", *TINY, "optim.lr=1e-3,1e-4")
    code, text = said(capsys, *words, "data.train=no.jsonl")
    assert (code, "no such file or folder: no.jsonl" in text) == (3, True)
    assert said(capsys, *words, "data.train=no.jsonl,train.jsonl")[0] == 0


@pytest.mark.slow
def test_each_metric_is_known_with_the_package_that_its_code_asks_for() -> None:
    asked = {}
    for metric in variants.METRICS:
        source = inspect.getsource(variants.METRICS.load(metric))
        found = re.findall(r"\bneed\(\"(\w+)", source)
        for base in variants.METRICS.load(metric).__mro__[1:-1]:
            found += re.findall(r"\bneed\(\"(\w+)", inspect.getsource(base))
        if found:
            asked[metric] = found[0]
    assert asked == {name: row.package for name, row in variants.METRICS.items() if row.package}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("status", "refused"), [(200, None), (404, "404"), (401, "401"), (403, "403"), (503, None)]
)
def test_the_hub_is_asked_for_what_is_not_cached(
    hub: dict[str, int], status: int, refused: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub |= {"/api/models/a/b": status, "/api/datasets/c/d": status}
    words = ("plan", "batch.sequences=8", "model.name=a/b")
    for data, code in (("train.jsonl", 2), ("c/d", 2)):
        found, text = said(capsys, *words, f"data.train={data}")
        assert found == (code if refused else 0), text
        assert refused is None or f"the hub says {refused}" in text


def test_a_private_model_is_asked_for_with_the_token(
    hub: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub |= {"/api/models/a/b/revision/v1?token": 200}
    words = ("plan", "batch.sequences=8", "data.train=train.jsonl", "model.name=a/b")
    assert said(capsys, *words, "model.revision=v1")[0] == 2
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert said(capsys, *words, "model.revision=v1")[0] == 0


def test_a_hub_that_is_slow_is_left_to_its_client(
    hub: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "HUB_TIMEOUT_S", 0.2)
    hub |= {"seconds": 1}
    code, text = said(
        capsys, "plan", "batch.sequences=8", "data.train=train.jsonl", "model.name=a/b"
    )
    assert code == 0, text


def test_a_hub_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    words = ("batch.sequences=8", "data.train=train.jsonl", "model.name=a/b")
    code, text = said(capsys, "plan", *words)
    assert (code, "the hub does not answer: [Errno 111]" in text) == (2, True), text


def test_a_model_in_the_hubs_cache_needs_no_hub(capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = Path("hub/hub/models--a--b/snapshots/main")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert (
        said(capsys, "plan", "batch.sequences=8", "data.train=train.jsonl", "model.name=a/b")[0]
        == 0
    )


@pytest.mark.slow
def test_layers_that_the_model_does_not_have_are_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    words = ("plan", *TINY, "data.train=train.jsonl", "peft=lora")
    code, text = said(capfd, *words, "peft.targets=[q_proj,nope]")
    assert code == 2
    assert "error: peft.targets: the model has no module named 'nope'\n  HINT: " in text
    assert "Traceback" not in text
    assert said(capfd, *words, "peft.modules_to_save=[norm]")[0] == 0


@pytest.mark.thorough
def test_slurms_nodes_may_have_what_this_host_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", *TINY, "launch=slurm", "cluster.gpus_per_node=0")
    assert said(capsys, *words, "data.train=/scratch-of-a-node/x.jsonl")[0] == 0
    assert said(capsys, *words, "data.train=x.jsonl")[0] == 3
    staged = f"data.train={Path.cwd()}/put-there-by-the-setup.jsonl"
    assert said(capsys, *words, staged)[0] == 3
    assert said(capsys, *words, staged, "cluster.setup=[true]")[0] == 0


def test_an_image_has_packages_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = ("plan", *TINY, "launch=slurm", "data.train=train.jsonl", "track=tensorboard")
    assert said(capsys, *words)[0] == 2
    image = ("cluster.container.runtime=apptainer", "cluster.container.image=x.sif")
    assert said(capsys, *words, *image)[0] == 0


def test_the_package_of_an_unknown_extra_is_named_without_a_version() -> None:
    assert registry.install("no_such_package", "data") == "pip install 'no-such-package'"
