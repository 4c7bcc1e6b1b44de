"""Completion: words, and the scripts in real shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.compose import completion, groups
from launcher.core.errors import ConfigError
from support.ranks import environment

VERBS = ["train", "config", "status", "data prepare", "data show", "completion"]


@pytest.mark.parametrize(
    ("line", "current", "expected"),
    [
        ([], "", ["train", "config", "status", "data", "completion"]),
        ([], "co", ["config", "completion"]),
        (["data"], "", ["prepare", "show"]),
        (["data", "prepare"], "engine=zero3", ["engine=zero3", "engine=zero3_offload"]),
        (["train"], "data.max", ["data.max_length="]),
        (["train"], "data.packing=", ["data.packing=true", "data.packing=false"]),
        (["train"], "engine.precision=b", ["engine.precision=bf16"]),
        (["train"], "data.format=ch", ["data.format=chat"]),
        (["train", "engine=zero2"], "peft=l", ["peft=lora"]),
        (["train"], "eng", ["engine=", "engine.zero=", "engine.precision=",
                            "engine.offload_optimizer=", "engine.offload_params=",
                            "engine.overlap_comm=", "engine.secondary_partition=",
                            "engine.sequence_parallel=", "engine.extra="]),
        (["train"], "track.wandb.mode=o", ["track.wandb.mode=online", "track.wandb.mode=offline"]),
        (["train"], "peft.ra", ["peft.rank="]),
        (["train"], "optim.na", []),
        (["train"], "run.name=", []),
        (["train"], "nothing", []),
        (["status"], "eng", []),
    ],
)  # fmt: skip
def test_words(line: list[str], current: str, expected: list[str]) -> None:
    assert completion.words(VERBS, line, current) == expected


def test_every_group_and_option_is_offered() -> None:
    for group, options in groups.list_groups().items():
        if options:
            assert f"{group}=" in completion.words(VERBS, ["train"], group)
        offered = completion.words(VERBS, ["train"], f"{group}=")
        assert offered == [f"{group}={option}" for option in options]


def test_unknown_shell() -> None:
    with pytest.raises(ConfigError, match="tcsh") as caught:
        completion.script("tcsh")
    assert "bash, zsh, fish" in caught.value.problems[0].hint


def _stub(folder: Path) -> None:
    """A `launcher` on the path that answers `completion --words` as the real one does."""
    file = folder / "launcher"
    file.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from launcher.config.compose import completion\n"
        "current, *line = sys.argv[3:]\n"
        f"print('\\n'.join(completion.words({VERBS!r}, line, current)))\n"
    )
    file.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("launcher tr", ["train"]),
        ("launcher train engine=zero3", ["zero3", "zero3_offload"]),
        ("launcher train data.max_len", ["data.max_length="]),
        ("launcher data ", ["prepare", "show"]),
    ],
)
def test_bash(tmp_path: Path, line: str, replies: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    _stub(tmp_path)
    program = (
        f"{completion.script('bash')}\n"
        "compopt() { :; }\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDBREAKS=' ='\n"
        "_launcher\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environ = environment()
    environ["PATH"] = f"{tmp_path}:{environ['PATH']}"
    done = subprocess.run([bash, "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == replies


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")]
)
def test_scripts_parse(shell: str, check: str, tmp_path: Path) -> None:
    text = completion.script(shell)
    assert "launcher completion --words" in text
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    file = tmp_path / "script"
    file.write_text(text)
    done = subprocess.run([program, check, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_completion_loads_no_library() -> None:
    program = (
        "import sys; from launcher.config.compose import completion\n"
        "assert completion.words(['train'], ['train'], 'engine=')\n"
        "assert not {'hydra', 'omegaconf', 'yaml', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
