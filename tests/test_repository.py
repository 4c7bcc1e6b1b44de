"""Rules of the repository that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from launcher.config.schema import variants
from launcher.core.registry import PluginTable

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "launcher").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROWS = [
    pytest.param(table, name, id=f"{table.key}={name}")
    for table in vars(variants).values()
    if isinstance(table, PluginTable)
    for name in table
]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _none(offences: Iterable[str]) -> None:
    """Fail with every offence on a line of its own."""
    listed = sorted(offences)
    assert not listed, "\n" + "\n".join(listed)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _nodes(path: Path, words: str) -> Iterator[ast.AST]:
    """All nodes of a file that has one of `words` (a pattern): to walk through others takes
    seconds."""
    text = path.read_text(encoding="utf-8")
    return ast.walk(ast.parse(text)) if re.search(words, text) else iter(())


def _undocumented(path: Path) -> Iterator[str]:
    """Where a docstring is missing: the module, its public classes and functions."""
    tree = _tree(path)
    if ast.get_docstring(tree) is None:
        yield _name(path)
    for node in tree.body:
        definition = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if definition and not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield f"{_name(path)}:{node.lineno} {node.name}"


def test_public_names_have_docstrings() -> None:
    _none(place for path in MODULES for place in _undocumented(path))


def test_no_class_name_stands_twice() -> None:
    """Private names are their module's own business."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(_name(path))
    assert len(places) > 200, "the search finds nothing where something is"
    _none(f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1)


def test_every_folder_of_modules_is_a_package() -> None:
    """The import contracts pass over what is none."""
    folders = {path.parent for path in (ROOT / "launcher").rglob("*.py")}
    assert len(folders) > 40, "the search finds nothing where something is"
    _none(str(folder) for folder in folders if not (folder / "__init__.py").is_file())


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_table_row_resolves(table: PluginTable, name: str) -> None:
    assert callable(table.load(name))


def _environment_reads(path: Path) -> Iterator[str]:
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in _nodes(path, "|".join(names)):
        attribute = (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )
        imported = (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        if attribute or imported:
            yield f"{_name(path)}:{node.lineno}"


def test_only_runtime_touches_the_environment() -> None:
    runtime = ROOT / "launcher" / "core" / "runtime.py"
    assert list(_environment_reads(runtime)), "the search finds nothing where something is"
    inside = ROOT / "launcher" / "vllm" / "inside"  # runs where there is no launcher
    others = [path for path in MODULES if path != runtime and inside not in path.parents]
    _none(place for path in others for place in _environment_reads(path))


#: Words of a scheduler, and the files besides its package that may use them: rows and options, and
#: a name that scripts in queues call.
_SCHEDULERS = re.compile(r"slurm|\bs(run|batch|queue|control|cancel|acct|acctmgr|info)\b", re.I)
_ROWS = (
    "config/schema/launch.py",
    "config/schema/variants.py",
    "launch/slurm_job.py",
)


def _schedulers(path: Path) -> Iterator[str]:
    """Names and texts of code, docstrings and comments left out, that belong to a scheduler."""
    text = path.read_text(encoding="utf-8")
    if not _SCHEDULERS.search(text):
        return  # to walk through it takes seconds
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        words = [getattr(node, key, None) for key in ("id", "attr", "arg", "name", "module")]
        if isinstance(node, ast.Constant) and id(node) not in prose:
            words.append(node.value)
        for word in words:
            if isinstance(word, str) and _SCHEDULERS.search(word):
                yield f"{_name(path)}:{getattr(node, 'lineno', 0)} {word}"


def test_a_scheduler_is_known_to_its_own_package_alone() -> None:
    own = ROOT / "launcher" / "launch" / "slurm"
    assert any(_schedulers(own / "backend.py")), "the search finds nothing where something is"
    rows = [ROOT / "launcher" / row for row in _ROWS]
    others = [path for path in MODULES if own not in path.parents and path not in rows]
    _none(place for path in others for place in _schedulers(path))


#: Ways to read and write text -> the argument that makes it text; None if nothing else can be.
_TEXT = {"read_text": None, "write_text": None, "open": "mode", "run": "text", "Popen": "text"}


def _by_locale(path: Path) -> Iterator[str]:
    """Calls whose text depends on the user's locale."""
    for node in _nodes(path, rf"\b({'|'.join(_TEXT)})\("):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        named = {word.arg: word.value for word in node.keywords}
        if name not in _TEXT or "encoding" in named or None in named:
            continue
        if name == "open":
            if not isinstance(node.func, ast.Name):
                continue  # of another kind
            mode = named.get("mode", node.args[1] if len(node.args) > 1 else ast.Constant("r"))
            is_text = isinstance(mode, ast.Constant) and "b" not in str(mode.value)
        else:
            is_text = _TEXT[name] is None or _TEXT[name] in named
        if is_text:
            yield f"{_name(path)}:{node.lineno} {name}"


def test_no_text_is_read_or_written_by_the_locale() -> None:
    _none(place for path in MODULES for place in _by_locale(path))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_what_is_imported_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = [line for extra, lines in extras.items() if extra != "dev" for line in lines]
    lines = [*project["dependencies"], *used]
    declared = {_canonical(re.split(r"[<>=!~; \[]", line)[0]) for line in lines}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in MODULES:
        for package in _imported(path) - sys.stdlib_module_names - {"launcher"}:
            # A package that is not installed here is an optional one of the same name.
            owners = {_canonical(name) for name in distributions.get(package, [package])}
            if not owners & declared:
                undeclared.add(f"{_name(path)}: {package}")
    _none(undeclared)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _committed() -> list[Path]:
    """Files that are, or would be, in a commit."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]


#: In pieces, because this file is searched too.
FORBIDDEN = {
    "a path of one machine": ["/wo" + "rk/", "/ro" + "ot/", "/tmp/" + "design", ".lib" + "rary/"],
    "a package host": [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "download." + "pytorch.org",
        "extra-" + "index-url",
        "find-" + "links",
        "/opt/" + "pypi",
        "/opt/" + "wheels",
    ],
    "a key": ["-----BEGIN " + "PRIVATE", "hf_" + "token=", "ghp" + "_"],
}


def test_no_file_names_a_machine_a_host_or_a_key() -> None:
    found = []
    for path in _committed():
        text = path.read_bytes().decode("utf-8", errors="ignore").lower()
        for what, words in FORBIDDEN.items():
            found += [f"{_name(path)}: {what} ({w})" for w in words if w.lower() in text]
    _none(found)


def _anchors(page: Path) -> set[str]:
    """The fragments that a Markdown viewer makes of a page's headings."""
    headings = re.findall(r"^#+\s+(.*?)\s*$", _prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _prose(page: Path) -> str:
    """A page without its code blocks, where # and [x](y) are no headings and links."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _prose(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    _none(broken)


def test_constraints_pin_exact_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pin = re.compile(r"[\w.-]+==[\w.]+( ; python_version (<|>=) \"3\.11\")?")
    _none(line for line in lines if not line.startswith("#") and not pin.fullmatch(line))
