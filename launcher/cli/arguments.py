"""Command lines that several verbs share: overrides of a new run, or the name of a run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from launcher.cli import VERBS
from launcher.core.registry import need
from launcher.core.rundir import DEFAULT_ROOT, RunDir, find_run

#: One argument of a verb: its names and the keywords for argparse.
Argument = tuple[list[str], dict[str, Any]]

JSON: Argument = (["--json"], {"action": "store_true", "help": "print JSON"})

#: a longer list of options is cut short in `--help`.
_MOST_NAMES = 12

#: Shown by --help of the verbs that compose a config.
KEYS = {
    "run.name": "name of the run, and of its folder under run.root",
    "model.name": "hub name or folder of the base model",
    "data.train": "file, glob, folder, list or hub name",
    "data.validation": "held-out data; otherwise a share of data.train",
    "data.max_length": "longest sequence, and size of a pack, in tokens",
    "batch.tokens": "global batch in tokens (or batch.sequences)",
    "train.epochs": "passes over the data (or train.steps)",
    "optim.lr": "peak learning rate",
    "peft.rank": "rank of the adapters, with peft=lora",
    "checkpoint.every_steps": "steps between checkpoints",
    "eval.every_steps": "steps between evaluations",
    "launch.processes": "ranks; default: all GPUs, else 1",
}


def overrides(verb: str, words: list[str], *arguments: Argument) -> argparse.Namespace:
    """Parse a verb that composes a config: `.overrides`, `.config_dir` and the further arguments.

    Its --help lists the groups with their options, and the most used keys.
    """
    wants_help = not {"-h", "--help"}.isdisjoint(words)
    parser = _parser(
        verb,
        epilog=_config_help() if wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="GROUP=OPTION, KEY=VALUE, or a file of your own such as my.yaml",
    )
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="a further folder of group options, such as DIR/experiment/mine.yaml",
    )
    for names, keywords in arguments:
        parser.add_argument(*names, **keywords)
    return parser.parse_intermixed_args(words)


def existing_run(
    verb: str, words: list[str], *arguments: Argument, optional: bool = False
) -> argparse.Namespace:
    """Parse a verb that works on a run: `.run` (None if `optional`), `.root` and the rest."""
    parser = _parser(verb)
    parser.add_argument(
        "run", metavar="RUN", help="name or folder of a run", nargs="?" if optional else None
    )
    parser.add_argument(
        "--root", default=DEFAULT_ROOT, metavar="DIR", help="folder of the runs (default: runs)"
    )
    for names, keywords in arguments:
        parser.add_argument(*names, **keywords)
    return parser.parse_intermixed_args(words)


def find(parsed: argparse.Namespace) -> RunDir:
    """The run that a command line names; `ConfigError` with close names if there is none."""
    return find_run(parsed.run, parsed.root)


def as_json(value: Any) -> str:
    """JSON for programs and people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def plain(
    verb: str, words: list[str], *arguments: Argument, intermixed: bool = False
) -> argparse.Namespace:
    """Parse a verb that composes no config and takes no run; `intermixed`: words of a list may
    stand among options."""
    parser = _parser(verb)
    for names, keywords in arguments:
        parser.add_argument(*names, **keywords)
    return parser.parse_intermixed_args(words) if intermixed else parser.parse_args(words)


def listen(port: int) -> tuple[Argument, ...]:
    """Options of the verbs that serve: `.host` and `.port`."""
    host = {"default": "127.0.0.1", "help": "address to listen at: %(default)s"}
    return (
        (["--host"], host),
        (["--port"], {"type": int, "default": port, "help": "default: %(default)s; 0: a free one"}),
    )


def need_server(verb: str) -> None:
    """`ConfigError` with what to install unless apps can be served."""
    for module in ("fastapi", "uvicorn", "httpx2"):
        need(module, "this needs", where=verb, extra="serve")


def words(parsed: argparse.Namespace, *names: str) -> list[str]:
    """The given options as the words that the run plane takes."""
    said = []
    for name in names:
        value = getattr(parsed, name)
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            said.append(flag)
        elif value is not None and value is not False:  # 0 is neither, though it equals False
            # With "=", because a text may begin with a dash.
            said += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    return said


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        """The page of help; argparse itself is silent where it cannot be written."""
        (file or sys.stdout).write(self.format_help())


def _parser(verb: str, **options: Any) -> argparse.ArgumentParser:
    return _Parser(
        prog=f"launcher {verb}", description=VERBS[verb][0], allow_abbrev=False, **options
    )


def _config_help() -> str:
    from launcher.config.compose import groups

    options = {group: names for group, names in groups.list_groups().items() if names}
    width = max(map(len, options)) + 2
    shown = [f"  {group:<{width}}{_few(names)}" for group, names in options.items()]
    keys = [f"  {key:<24}{meaning}" for key, meaning in KEYS.items()]
    lines = ["groups (GROUP=OPTION):", *shown, "", "most used keys (KEY=VALUE):", *keys]
    end = "`launcher config` prints all keys with their values, docs/config.md what they mean;"
    return "\n".join([*lines, "", end, "docs/models.md lists the presets of models."])


def _few(names: Sequence[str]) -> str:
    """The names of a group, or the first and the last of a long list."""
    if len(names) <= _MOST_NAMES:
        return " ".join(names)
    ends = _MOST_NAMES // 2
    left_out = len(names) - 2 * ends
    return f"{' '.join(names[:ends])} ... {' '.join(names[-ends:])} ({left_out} more)"
