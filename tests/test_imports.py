"""What is imported where: the control plane never what the run plane needs, a rank only what it
trains with, no module what needs it; and how imports of transformers are made cheaper."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from launcher.core import imports
from support.imported import of_rank
from support.project import Project, conversations
from support.ranks import environment

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "launcher"

CONTROL = (
    "ab",
    "bases",
    "cli",
    "config",
    "core",
    "doctor",
    "fingerprint",
    "launch",
    "record_fields",
    "report",
    "runs",
    "sweeps",
    "word_problems",
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


@pytest.mark.slow  # `make check` looks itself
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


# ---- cycles


def test_no_module_needs_itself() -> None:
    """Nor by an import inside a function, or one for types: who reads one file of a cycle has to
    read them all."""
    assert list(_cycles(_graph(PACKAGE))) == []


def test_cycles_are_found_wherever_the_import_stands(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from package import b",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .sub.c import name",
        "sub/__init__": "",
        "sub/c": "import package.a",
        "sub/d": "from . import c\nfrom ..sub import e",
        "sub/e": "import os, json",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert list(_cycles(_graph(package))) == [["package.a", "package.b", "package.sub.c"]]


def _graph(package: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it names in an import anywhere in its file."""
    files = {_module(path, package.parent): path for path in package.rglob("*.py")}
    return {name: set(_imported(name, path, files)) for name, path in files.items()}


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            inside = [f"{source}.{alias.name}" for alias in node.names]
            named = [full if full in files else source for full in inside]
        else:
            continue
        yield from (found for found in named if found in files and found != name)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, those inside others too; expressions, which take most of the time, are
    passed over."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        for part in ("body", "orelse", "handlers", "finalbody", "cases"):
            left += getattr(node, part, ())


def _cycles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Groups of modules each of which needs all the others: strongly connected components."""
    reached = {name: _reached(graph, name) for name in graph}
    seen: set[str] = set()
    for name in sorted(graph):
        if name in reached[name] and name not in seen:
            group = sorted(other for other in reached[name] if name in reached[other])
            seen.update(group)
            yield group


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


# ---- ranks

#: Installed beside the launcher, or loaded by a library wherever it is there; a rank that trains a
#: language model does without. Hydra composes before a rank starts.
NOT_IN_A_RANK = {
    *("scipy", "sklearn", "pandas", "pyarrow", "datasets", "matplotlib", "torchvision"),
    *("wandb", "tensorboard", "hydra", "omegaconf", "antlr4", "rich", "optuna", "lm_eval", "vllm"),
    *("sqlalchemy", "fastapi", "IPython", "pytest"),
    # What compiles, and what starts others.
    *("torch._inductor.compile_fx", "torch.distributed.run", "deepspeed.launcher"),
    # What transformers trains and serves with itself.
    *("transformers.trainer", "transformers.pipelines", "transformers.data"),
    *("launcher.curate", "launcher.launch", "launcher.runs", "launcher.data.prepare"),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "single"])
def test_a_rank_imports_before_its_first_step_what_it_trains_with(
    tmp_path: Path, engine: str
) -> None:
    project = Project(tmp_path)
    project.write_data(conversations(40))
    # A key of DeepSpeed's has it train the only rank, too.
    extra = (
        ["engine.extra={zero_optimization:{reduce_bucket_size:1000000}}"]
        if engine == "zero2"
        else []
    )
    found = of_rank(project, "one", "peft=lora", "peft.rank=4", *extra)
    whole = set(found.seconds)
    assert {"torch", "transformers.modeling_utils", "peft", "launcher.train"} <= whole
    assert ("deepspeed" in whole) == (engine == "zero2")
    assert whole & NOT_IN_A_RANK == set()


# ---- transformers, made cheaper

INDEX = {
    frozenset(): {"a": {"A", "AConfig"}},
    frozenset({"torch", "vision"}): {"modeling_a": {"AModel"}},
    "inner": {frozenset({"torch"}): {"b": {"B"}}},
}


def _library(folder: Path) -> tuple[ModuleType, list[Any]]:
    """What `keep_index` expects of transformers, and the folders that it is asked to read."""
    for name in ("utils/import_utils.py", "models/__init__.py", "models/a.py", "models/inner/b.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).touch()
    module = ModuleType("import_utils")
    module.__file__ = str(folder / "utils" / "import_utils.py")
    asked: list[Any] = []

    def read(place: Any) -> Any:
        asked.append(place)
        return INDEX

    module.create_import_structure_from_path = read  # type: ignore[attr-defined]
    imports.keep_index(module)
    return module, asked


def _read(module: ModuleType, place: Any) -> Any:
    return module.create_import_structure_from_path(place)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_index_of_models_is_read_once_for_all_processes(tmp_path: Path, cache: Path) -> None:
    models = tmp_path / "models"
    first, asked = _library(tmp_path)
    assert _read(first, models) == _read(first, f"{models}/__init__.py") == INDEX
    assert len(asked) == 1
    second, asked = _library(tmp_path)
    found = _read(second, models)
    assert (found, asked) == (INDEX, [])
    # What one caller does with it no other sees.
    found["inner"].clear()
    assert _read(second, models) == INDEX
    # Of a single model it is read as ever.
    _read(second, models / "inner")
    assert asked == [models / "inner"]


@pytest.mark.parametrize("name", ["models/a.py", "models/inner/b.py", "utils/import_utils.py"])
def test_an_index_of_other_sources_is_not_taken(tmp_path: Path, cache: Path, name: str) -> None:
    _read(_library(tmp_path)[0], tmp_path / "models")
    (tmp_path / name).write_text("# changed")
    module, asked = _library(tmp_path)
    assert _read(module, tmp_path / "models") == INDEX
    assert asked


@pytest.mark.parametrize("text", ["", "{", "[]", "[[], 3]", "null", '[[["torch", {}, 1]], {}]'])
def test_a_damaged_index_is_read_again_and_mended(tmp_path: Path, cache: Path, text: str) -> None:
    _read(_library(tmp_path)[0], tmp_path / "models")
    (kept,) = (cache / "imports").iterdir()
    kept.write_text(text)
    for count in (1, 0):
        module, asked = _library(tmp_path)
        assert _read(module, tmp_path / "models") == INDEX
        assert len(asked) == count


def test_without_a_place_to_keep_it_the_index_is_read_as_ever(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file in the place of the folder")
    assert _read(_library(tmp_path)[0], tmp_path / "models") == INDEX
    monkeypatch.delenv("LAUNCHER_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    assert _read(_library(tmp_path)[0], tmp_path / "models") == INDEX


# Imports transformers as every process of the run plane does, and compares with what it makes of
# its sources itself; the second time it must not open them.
LIGHT = """
import os, sys
from launcher.core import imports
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
sys.modules["torch"] = None
imports.lighten()
imports.lighten()
import transformers, transformers.models
folder = os.path.dirname(transformers.models.__file__)
sources = [name for name in opened if name.startswith(folder) and name.endswith(".py")]
print(len(sources))
from transformers.utils.import_utils import create_import_structure_from_path as index_of
assert index_of(folder) == index_of(folder + "/")  # by another name it is read as ever
assert len(opened) > 1000
assert transformers.AutoTokenizer.__name__ == "AutoTokenizer"
"""


@pytest.mark.slow
def test_transformers_reads_the_sources_of_its_models_in_the_first_process_only(
    cache: Path,
) -> None:
    for least, most in ((1000, 10_000), (0, 20)):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT],
            env=environment(LAUNCHER_TESTS_ZYGOTE=""),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert least <= int(done.stdout.split()[0]) <= most


LOSSES = """
import sys
from launcher.core import imports
imports.lighten()
import transformers
assert transformers.utils.is_scipy_available()
from transformers.modeling_utils import PreTrainedModel
assert "scipy" not in sys.modules
assert transformers.utils.is_scipy_available()
import scipy.optimize
from transformers.models.maskformer import modeling_maskformer
assert modeling_maskformer.linear_sum_assignment is scipy.optimize.linear_sum_assignment
"""
#: Whoever imports it meanwhile, here in that thread and in another one, has it.
BESIDE = """
import sys, threading
from launcher.core import imports
imports.lighten()
import transformers.utils
told = {}
def ask(who):
    import scipy.optimize
    told[who] = transformers.utils.is_scipy_available()
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "transformers.loss.loss_d_fine":
            other = threading.Thread(target=ask, args=("other",))
            other.start()
            other.join(60)
            ask("same")
sys.meta_path.insert(0, Finder())
import transformers.loss.loss_utils
assert told == {"other": True, "same": False}, told
"""
EARLIER = """
import scipy.optimize
from launcher.core import imports
imports.lighten()
from transformers.loss import loss_for_object_detection
assert loss_for_object_detection.linear_sum_assignment is scipy.optimize.linear_sum_assignment
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [LOSSES, BESIDE, EARLIER], ids=["not-yet", "beside", "already"])
def test_scipy_is_there_for_whoever_asks_for_it_but_for_losses_of_object_detection(
    script: str,
) -> None:
    pytest.importorskip("scipy")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(LAUNCHER_TESTS_ZYGOTE=""),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
