"""Files of a user's own and the modules beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core import owncode
from launcher.core.errors import ConfigError

FILES = {
    "mine.py": "from . import words\nfrom .parts.join import joined\n\n"
    "class Format:\n    def read(self):\n        from .late import late\n"
    "        return joined(words.WORD, late)\n",
    "words.py": "WORD = 'a'\n",
    "late.py": "late = 'c'\n",
    "parts/__init__.py": "",
    "parts/join.py": "from ..words import WORD\nfrom .mark import MARK\n\n"
    "def joined(*words):\n    return MARK.join([WORD, *words])\n",
    "parts/mark.py": "MARK = '-'\n",
    "parts/unused.py": "",
    "other.py": "raise SystemExit('run')\n",
}
USED = ["late.py", "parts/__init__.py", "parts/join.py", "parts/mark.py", "words.py"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / next(iter(files))


def test_the_modules_of_a_file_are_those_that_it_imports(tmp_path):
    mine = write(tmp_path, FILES)
    assert list(owncode.modules(mine)) == USED
    assert owncode.load(str(mine), "Format", where="data.format")().read() == "a-a-c"
    assert list(owncode.problems(mine, "data.format")) == []


def test_a_copy_finds_the_copies_of_its_modules(tmp_path):
    mine = write(tmp_path / "a", FILES)
    kept = {f"{owncode.copied_modules('format.py')}/{name}": FILES[name] for name in USED}
    copy = write(tmp_path / "b", {"format.py": FILES["mine.py"], **kept})
    assert list(owncode.modules(copy)) == USED
    write(tmp_path / "a", {"words.py": "WORD = 'other'\n"})
    assert owncode.load(str(copy), "Format", where="data.format")().read() == "a-a-c"
    assert owncode.load(str(mine), "Format", where="data.format")().read() == "other-other-c"


def test_two_files_may_have_modules_of_one_name(tmp_path):
    text = "from .helper import WORD\n\nclass Format:\n    word = WORD\n"
    for name in ("a", "b"):
        mine = write(tmp_path / name, {"mine.py": text, "helper.py": f"WORD = {name!r}\n"})
        assert owncode.load(str(mine), "Format", where="data.format").word == name


@pytest.mark.parametrize(
    "text",
    ["import helper\n", "import helper.x as x\n", "def f():\n    from helper import x\n"],
)
def test_a_module_beside_a_file_is_imported_as_one_or_refused_by_name(tmp_path, text, monkeypatch):
    mine = write(tmp_path, {"mine.py": text, "helper.py": "x = 1\n"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), "/nowhere"])
    (problem,) = owncode.problems(mine, "data.format")
    assert problem.where == "data.format"
    assert f"{mine} imports helper, which lies beside it" in problem.found
    assert "from .helper import" in problem.hint
    # What is found wherever a command is typed is nobody's to copy.
    monkeypatch.chdir("/")
    assert list(owncode.problems(mine, "data.format")) == []


def test_modules_of_modules_are_refused_too(tmp_path):
    files = {"mine.py": "from . import a\n", "a.py": "import b\nimport json\n", "b.py": ""}
    mine = write(tmp_path, {**files, "json.py": ""})
    (problem,) = owncode.problems(mine, "objective.name")
    assert f"{tmp_path / 'a.py'} imports b" in problem.found


def test_what_leads_out_of_the_folder_or_cannot_be_parsed_has_no_modules(tmp_path):
    mine = write(tmp_path / "a", {"mine.py": "from .. import b\nfrom .gone import x\n"})
    write(tmp_path, {"b.py": ""})
    assert owncode.modules(mine) == {}
    with pytest.raises(ConfigError, match="cannot be used: ImportError"):
        owncode.load(str(mine), "Format", where="data.format")
    mine.write_text("from . import (\n")
    assert owncode.modules(mine) == {}
    assert owncode.modules(tmp_path / "gone.py") == {}
    assert list(owncode.problems(tmp_path / "gone.py", "data.format")) == []
