"""The documentation is true: its commands run, its keys, verbs and exit codes exist.

How a page marks its blocks: `bash` is run, page by page, each page in a folder with train.jsonl and
the run of docs/train.md; `bash exit=N` ends with that code; `LANGUAGE FILE` is written to that file
before the page's commands run; `python row=TABLE` is a row for that table of
config/schema/variants.py; `sh` needs what is not here (a GPU, a hub name), so its launcher commands
are only composed; `text` is output.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.cli import VERBS
from launcher.config.check import checks
from launcher.config.compose import compose, groups
from launcher.config.derive import plan
from launcher.config.schema import conversion
from launcher.core.errors import ExitCode
from launcher.data.sources.limits import MAX_RECORD_BYTES
from launcher.evals.comparison.paired import MIN_DIFFERING, Resampling
from launcher.sweeps import space
from support import plugins, zygote
from support.ranks import environment

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: config.md is made from the code, and a test of its own keeps it current.
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.glob("*.md") if page.stem != "config")]
#: The page that makes the run which other pages use.
FIRST = DOCS / "train.md"
BLOCK_TIMEOUT_S = 240
COMPOSING = (
    *("train", "submit", "plan", "config"),
    *("data prepare", "data show", "data report", "data clean"),
)
#: Words before "=" in the text that are no keys.
NO_KEYS = {"key", "exit", "hydra.sweeper.max_batch_size"}
FILE_ENDINGS = {"json", "jsonl", "yaml", "html", "log", "md", "py", "parquet", "csv", "txt"}


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, where, and what is in it."""

    where: str
    language: str
    info: str
    text: str

    @property
    def exit_code(self) -> int:
        """The exit code that a `bash` block announces."""
        return int(self.info.removeprefix("exit=") or 0)


def _blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\S*) ?(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    return [
        Block(f"{page.name}:{text.count(chr(10), 0, m.start()) + 1}", m[1], m[2].strip(), m[3])
        for m in found
    ]


def _prose(page: Path) -> list[str]:
    """Paragraphs without code blocks, each on one line."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(part.split("\n")) for part in text.split("\n\n")]


def _spans(page: Path) -> list[str]:
    return [span for part in _prose(page) for span in re.findall(r"`([^`]+)`", part)]


def _commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(verb, its words) of every launcher command in a block; "" for a direct start of ranks."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r" \| |<\(", line):
            words = shlex.split(part.rstrip(")"), comments=True)
            if words[:1] == ["launcher"]:
                verb = next(v for v in (" ".join(words[1:n]) for n in (4, 3, 2)) if v in VERBS)
                yield verb, words[1 + len(verb.split()) :]
            elif "launcher.train" in words:
                yield "", words[words.index("launcher.train") + 1 :]


def _write_files(page: Path, folder: Path) -> None:
    for block in _blocks(page):
        if block.language != "bash" and block.info and not block.info.startswith("row="):
            path = folder / block.info
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


# ---- fast: what is written exists


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if f"]({page.name})" not in index]
    assert missing == ["index.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page):
    for block in _blocks(page):
        if block.language in ("sh", "text"):
            assert not block.info, block.where
        elif block.language == "bash":
            assert re.fullmatch(r"(exit=\d+)?", block.info), block.where
        else:
            assert block.info, f"{block.where}: name the file, or use `text`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_compose(page, tmp_path):
    _write_files(page, tmp_path)
    for block in _blocks(page):
        if block.language not in ("bash", "sh") or block.exit_code:
            continue
        for verb, words in _commands(block):
            if verb not in ("", *COMPOSING):
                continue
            named = [words[i + 1] for i, word in enumerate(words) if word == "--config-dir"]
            added = ["conf"] if (tmp_path / "conf").is_dir() else []
            folders = [tmp_path / name for name in (*named, *added)]
            chosen = [word for word in words if re.match(r"[a-z][\w.]*=", word)]
            if "-m" in words:  # a sweep: what all its trials share
                chosen = space.read(chosen, groups.list_groups()).fixed
            with plugins.installed(tmp_path):
                config, problems = compose.try_compose(chosen, folders)
            # Folders of adapters are made by the commands before.
            problems = [p for p in problems if "holds no adapter" not in p.found]
            if block.language == "sh" and verb in ("", "train", "plan"):
                found = checks.check(config, world_size=1, has_gpu=True)
                # Nor is an environment of vLLM's.
                problems += [p for p in found if p.where != "rollout.python"]
            assert not problems, f"{block.where}: {problems}"


def _wrong_values(key: str, value: str, options: dict[str, list[str]]) -> list[str]:
    """What is wrong with `key=value` in the text; `value` may be cut short or stand for others."""
    if key in options:
        names = [name for name in value.split("|") if re.fullmatch(r"[\w.-]+", name)]
        return [
            f"{key}={name}" for name in names if not name.isupper() and name not in options[key]
        ]
    known = conversion.written_type(key) is not None
    return [] if known else [f"{key}="]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_in_the_text_exist(page):
    options, wrong = groups.list_groups(), []
    for span in _spans(page):
        for key, value in re.findall(r"(?:^| )([a-z][a-z0-9_]*(?:\.\w+)*)=([^\s`]*)", span):
            if key not in NO_KEYS:
                wrong += _wrong_values(key, value, options)
        section, _, rest = span.partition(".")
        is_key = (
            re.fullmatch(r"[a-z]+(\.[a-z][a-z0-9_]*)+", span) and section in conversion.sections()
        )
        if is_key and rest not in FILE_ENDINGS and span not in conversion.sections():
            wrong += _wrong_values(span, "", options)
    assert not wrong


def test_a_wrong_key_in_the_text_is_found():
    options = groups.list_groups()
    assert _wrong_values("optim.lrr", "1", options) == ["optim.lrr="]
    assert _wrong_values("engine", "zero2|zero9", options) == ["engine=zero9"]
    assert not _wrong_values("model", "NAME", options)


def test_every_verb_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [verb for verb in VERBS if not re.search(rf"launcher {verb}\b", text)]
    assert not missing


def test_the_table_of_exit_codes_is_complete():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (DOCS / "launch.md").read_text(), re.MULTILINE)
    assert {int(code): name for code, name in rows} == {int(c): c.name for c in ExitCode}
    headings = re.findall(r"^## (.*)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    named = {int(number) for heading in headings for number in re.findall(r"\d+", heading)}
    assert named == {int(code) for code in ExitCode} - {0}


@pytest.mark.parametrize(
    ("page", "quoted"),
    [
        ("train", "{cuda:,} tokens on a GPU and {cpu:,} on a CPU".format(**plan.MICRO_TOKENS)),
        ("data", f"up to {MAX_RECORD_BYTES >> 20} MiB"),
        ("evaluate", f"({Resampling().count:,} resamples, seeded)"),
        ("evaluate", f"at least {MIN_DIFFERING} records differ"),
    ],
)
def test_numbers_are_those_of_the_code(page, quoted):
    assert quoted in " ".join(_prose(DOCS / f"{page}.md"))


# ---- slow: commands run


def _make_data(folder: Path) -> None:
    names, things = ("Anna", "Ben", "Cleo", "Dan"), ("apples", "books", "coins", "pens")
    lines = []
    for i in range(240):
        a, b = 7 * i % 19 + 1, 5 * i % 13 + 1
        thing = things[i // 4 % 4]
        question = f"{names[i % 4]} has {a} {thing} and gets {b} more. How many?"
        turns = (("user", question), ("assistant", f"{a} + {b} = {a + b}. #### {a + b}"))
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))


def _add_rows(page: Path, folder: Path) -> bool:
    """Copy the package into `folder` and add the rows of a page that extends it."""
    rows = [block for block in _blocks(page) if block.info.startswith("row=")]
    if rows:
        for name in ("launcher", "conf"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        variants = folder / "launcher" / "config" / "schema" / "variants.py"
        for block in rows:
            table = re.escape(block.info.removeprefix("row="))
            pattern = rf"(^{table} = PluginTable\(\s*\"[\w.]+\",\s*\{{\n)"
            text, count = re.subn(pattern, rf"\1{block.text}", variants.read_text(), flags=re.M)
            assert count == 1, f"{block.where}: no such table"
            variants.write_text(text)
    return bool(rows)


def _run_page(page: Path, folder: Path) -> None:
    """Run the page's commands in `folder`, in order; `AssertionError` with the output of the first
    that ends with another code than the page says."""
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    places = os.pathsep.join([str(folder), str(zygote.WARM)])
    extended = {"PYTHONPATH": places} if _add_rows(page, folder) else {}
    _write_files(page, folder)
    for block in _blocks(page):
        if block.language != "bash":
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=folder,
            env=environment(PATH=path, **extended),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BLOCK_TIMEOUT_S,
        )
        problem = f"{block.where}: exit code {done.returncode}, not {block.exit_code}"
        assert done.returncode == block.exit_code, f"{problem}\n{block.text}\n{done.stdout}"


@pytest.fixture(scope="session")
def first(_launcher_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands of docs/train.md have run; read-only by agreement."""
    folder = tmp_path_factory.mktemp("docs")
    _make_data(folder)
    _run_page(FIRST, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "bash" for block in _blocks(page))],
    ids=lambda page: page.name,
)
def test_commands_run(page, first, tmp_path):
    if page == FIRST:
        assert (first / "runs" / "first" / "eval" / "comparison.json").is_file()
        return
    folder = tmp_path / "page"
    shutil.copytree(first, folder)
    _run_page(page, folder)
