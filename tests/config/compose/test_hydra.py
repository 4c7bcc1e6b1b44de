"""What is used of Hydra's and OmegaConf's inside is used in one file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.config.compose import hydra

ROOT = Path(__file__).resolve().parents[3]
#: The documented interface, in modules: it stays from one release to the next.
PUBLIC = {
    *("hydra", "hydra.main", "hydra.errors", "hydra.plugins.launcher"),
    *("omegaconf", "omegaconf.errors"),
}
_PRIVATE = re.compile(r"\b(hydra|omegaconf)\._|\bhydra\.core\b")


def inner_names(text: str) -> Iterator[str]:
    """What a source names of the two libraries beyond their documented interface, in imports and
    in strings that are imported by."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [
                node.module,
                *(f"{node.module}.{a.name}" for a in node.names if a.name[0] == "_"),
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if _PRIVATE.match(node.value) else []
        for name in names:
            if name.partition(".")[0] in ("hydra", "omegaconf") and name not in PUBLIC:
                yield name


def test_one_file_names_them() -> None:
    files = [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    named = [path for path, text in texts.items() if "hydra" in text or "omegaconf" in text]
    found = {path for path in named if any(inner_names(texts[path]))}
    assert found == {Path(hydra.__file__)}


def test_the_search_sees_them() -> None:
    for line in (
        "from hydra._internal.hydra import Hydra",
        "from hydra import _internal",
        "import hydra.core.plugins",
        "def f():\n    from omegaconf._utils import get_value_kind",
        "from omegaconf.base import Node",
        "load('hydra._internal.config_repository:ConfigRepository')",
    ):
        assert list(inner_names(line)), line
    public = "from hydra.errors import HydraException\nfrom omegaconf import OmegaConf"
    assert not list(inner_names(public))
