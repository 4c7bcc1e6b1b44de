"""The wheel, installed in an empty environment and used from another folder, is complete."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from support import zygote

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    _run(sys.executable, "-m", "pip", "wheel", ROOT, *options, "-w", folder, cwd=folder)
    (built,) = folder.glob("launcher-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ folder of an environment with the wheel, its dependencies borrowed from here."""
    venv = tmp_path_factory.mktemp("venv")
    _run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv)
    python = venv / "bin" / "python"
    options = ["install", "--no-deps", "--no-index", "-q"]
    _run(sys.executable, "-m", "pip", "--python", python, *options, wheel, cwd=venv)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    # A path in a .pth file is searched last, and .pth files in it are not read: an editable install
    # of this checkout stays out of sight.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def test_wheel_carries_the_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"launcher/_{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    kinds = ("j2", "css", "js", "html", "svg")
    templates = {
        str(path.relative_to(ROOT))
        for kind in kinds
        for path in (ROOT / "launcher").rglob(f"*.{kind}")
    }
    assert conf
    assert templates
    assert conf | templates <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"launcher"}


def test_installed_command_finds_its_config(installed: Path, weird_tmp_path: Path) -> None:
    where = "import launcher; print(launcher.__file__)"
    package = _run(installed / "python", "-c", where, cwd=weird_tmp_path).strip()
    assert package.startswith(str(installed.parent))
    text = _run(installed / "launcher", "config", "experiment=quickstart", cwd=weird_tmp_path)
    assert "lora" in text
    assert list(weird_tmp_path.iterdir()) == []


def test_installed_command_trains(
    installed: Path, weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(weird_tmp_path / "cache"))
    monkeypatch.setenv(zygote.VARIABLE, "")  # what it imports is its own
    # Without its pre-trained base, which takes a minute: tests/test_quickstart.py has all of it.
    words = ["experiment=quickstart", "model.recipe=null", "train.steps=3", "run.name=first"]
    limits = ["eval.limit=8", "eval.generate_limit=4", "eval.max_new_tokens=4"]
    _run(installed / "launcher", "train", *words, *limits, cwd=weird_tmp_path)
    assert (weird_tmp_path / "runs" / "first" / "export" / "adapter_model.safetensors").is_file()
    assert (weird_tmp_path / "runs" / "first" / "report.html").is_file()
