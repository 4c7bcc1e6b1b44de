"""Clients of the service, each installed once into the user's cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.ranks import environment

FOLDER = Path(__file__).resolve().parents[1] / "serve" / "clients"
CACHE = Path("~/.cache/launcher-tests/clients").expanduser()
NODE = shutil.which("node")
INSTALL_S = 240


def python_with(version: str) -> str:
    """A Python that has this version of `openai`; skips the test where it cannot be had."""
    return python_of(f"python-{version}", f"openai=={version}")


def python_of(name: str, *wanted: str, alone: str = "") -> str:
    """A Python with what pip makes of `wanted`, and of `alone` without what that asks for; `name`
    is its folder. Skips the test where it cannot be had."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(folder)])
        install = [str(python), "-m", "pip", "install", "-q"]
        _install([*install, *wanted])
        if alone:
            _install([*install, "--no-deps", alone])
        (folder / "whole").touch()
    return str(python)


def node_with(version: str) -> Path:
    """A folder in which node finds this version of `openai`; skips the test likewise."""
    return node_of(f"node-{version}", f"openai@{version}")


def node_of(name: str, wanted: str) -> Path:
    """A folder, called `name`, in which node finds the package `wanted`; skips likewise."""
    if NODE is None or shutil.which("npm") is None:
        pytest.skip("no node and npm: install nodejs and npm to try the clients for node")
    folder = CACHE / name
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"type": "module", "private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", wanted]
        _install([*command, "--prefix", str(folder)])
        (folder / "whole").touch()
    return folder


def installed(name: str, wanted: str) -> Path:
    """What `node_of` gives of a package that is too large to be installed by a test; skips the
    test where it has not been."""
    folder = CACHE / name
    if not (folder / "whole").exists():
        install = f"npm install --prefix {folder} {wanted} && touch {folder}/whole"
        pytest.skip(f"needs more than a gigabyte: {install}")
    return folder


def _install(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the registry takes too long: {' '.join(command)}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot be installed: {' '.join(command)}: {error.stderr[-300:]}")


def run(command: list[str], folder: Path, base_url: str, key: str, **environ: str) -> str:
    """Standard output of a program that only the environment tells where the service is."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(OPENAI_BASE_URL=base_url, OPENAI_API_KEY=key, **environ),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
