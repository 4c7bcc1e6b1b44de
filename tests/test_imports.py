"""The control plane answers at once because it never imports what the run plane needs."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.ranks import environment

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "launcher"

CONTROL = (
    "ab",
    "bases",
    "cli",
    "config",
    "console",
    "doctor",
    "errors",
    "fingerprint",
    "host",
    "jobs",
    "jsontext",
    "launch",
    "listen",
    "meanings",
    "procfs",
    "ranks",
    "registry",
    "report",
    "rundir",
    "runtime",
    "stories",
    "streams",
    "sweeps",
    "vitals",
)

RUN_LIBRARIES = {
    "datasets",
    "deepspeed",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
    "tensorboard",
    "wandb",
}
VERB_LIBRARIES = {"hydra", "jinja2", "omegaconf", "rich", "yaml"}

# Imports one module after the other and says which top-level packages each has added.
PROBE = """
import importlib, json, sys
added = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    added[name] = sorted({new.partition(".")[0] for new in set(sys.modules) - before})
print(json.dumps(added))
"""


def _control_modules() -> list[str]:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    names = []
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 1 and parts[1] in CONTROL:
            names.append(".".join(part for part in parts if part != "__init__"))
    return sorted(names)


def _added(*modules: str) -> dict[str, list[str]]:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    added: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return added


def test_every_control_module_exists() -> None:
    tops = {name.split(".")[1] for name in _control_modules()}
    assert tops == set(CONTROL)


def test_control_modules_load_no_run_library() -> None:
    heavy = {
        name: sorted(RUN_LIBRARIES & set(packages))
        for name, packages in _added(*_control_modules()).items()
    }
    assert {name: packages for name, packages in heavy.items() if packages} == {}


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in _added("numpy")["numpy"]


def test_the_command_line_loads_no_library_before_its_verb() -> None:
    assert set(_added("launcher.cli")["launcher.cli"]) & (RUN_LIBRARIES | VERB_LIBRARIES) == set()


def test_import_contracts_hold() -> None:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not command.exists():
        pytest.fail("import-linter is not installed: make install")
    result = subprocess.run(
        [command, "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
