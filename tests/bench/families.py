"""Every architecture of transformers under the launcher, compared with plain transformers.

    python tests/bench/families.py                      # what is not in the results yet
    python tests/bench/families.py --only qwen3_next    # one architecture, again (repeatable)
    python tests/bench/families.py --failed             # again what was neither equal nor refused
    python tests/bench/families.py --head engine        # the main ones under DeepSpeed, minutes
    python tests/bench/families.py --write tests/bench/families.md

A small random model of each architecture goes through the launcher's own functions in a process of
its own: loading, losses, gradients (full and LoRA), export, generation; `support.family_checks`
says what is compared. Under DeepSpeed a run of each main family is stopped and resumed at ZeRO-2
and 3 on one and on two ranks, in full and with LoRA. Results are appended to a file of JSON lines,
one a check.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

END = "end"
BAD = ("different", "error", "not causal")


def check(name: str, head: str, results: Path, log: Path) -> None:
    """All checks of one architecture, in a process of its own."""
    import torch

    from support.families import make_family
    from support.family_checks import check_engine, check_family, describe, subject

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)

    def say(check: str, outcome: str, detail: str, began: float) -> None:
        seconds = round(time.monotonic() - began, 1)
        line = {"name": name, "head": head, "check": check, "outcome": outcome}
        append(results, line | {"detail": detail, "seconds": seconds})

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        try:
            kind = "causal" if head == "engine" else head
            base = make_family(name, Path(work) / "base", kind)
        except Exception as error:
            base = Path(work) / "base"
            say("make", "unusable", describe(error), began)
            if head == "images" or not (base / "config.json").is_file():
                return
        last = time.monotonic()
        checks = check_engine if head == "engine" else check_family
        for one in checks(subject(base, Path(work), head)):
            say(one.check, one.outcome, one.detail, last)
            last = time.monotonic()


def warm_up() -> None:
    """Import what the checks need, once for all processes: all that leaves no threads behind."""
    import torch
    from transformers.utils import logging

    from launcher.data.pack.loader import make_row
    from launcher.model.export import Kind
    from support import family_checks
    from support.families import make_family

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        base = make_family("llama", Path(work) / "base")
        one = family_checks.subject(base, Path(work), "causal")
        words = list(family_checks.LORA)
        began = family_checks.start(one, words)
        began.head.score(began.model, make_row(one.cache, [0, 1]))
        family_checks.check_export(one, words, Kind.merged)
        family_checks.check_generation(one, [])


def append(results: Path, line: dict[str, Any]) -> None:
    """One line, whole, however many processes write."""
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\n")


def read(results: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The latest results of each architecture and head, in the order of the checks."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    if not results.is_file():
        return found
    for text in results.read_text().splitlines():
        line = json.loads(text)
        key = (line["name"], line["head"])
        if line["check"] == "begin":
            found[key] = []
        else:
            found.setdefault(key, []).append(line)
    return found


def sweep(asked: list[tuple[str, str]], results: Path, logs: Path, jobs: int, limit: float) -> None:
    """Check what is asked for, `jobs` at a time; each may take `limit` seconds."""
    if not asked:
        return
    warm_up()
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[str, str, float]] = {}
    waiting = list(reversed(asked))
    done = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            name, head = waiting.pop()
            append(results, {"name": name, "head": head, "check": "begin"})
            log = logs / f"{name}-{head}.log"
            process = context.Process(target=check, args=(name, head, results, log))
            process.start()
            running[process] = (name, head, time.monotonic())
        time.sleep(0.05)
        for process, (name, head, began) in list(running.items()):
            seconds = time.monotonic() - began
            if process.is_alive() and seconds < limit:
                continue
            outcome = None
            if process.is_alive():
                process.kill()
                outcome = f"no end after {limit:.0f} s"
            process.join()
            if outcome is None and process.exitcode:
                outcome = f"exit code {process.exitcode}"
            del running[process]
            line = {"name": name, "head": head}
            if outcome:
                append(results, line | {"check": "process", "outcome": "error", "detail": outcome})
            append(results, line | {"check": END, "outcome": "", "seconds": round(seconds, 1)})
            done += 1
            print(f"[{done}/{len(asked)}] {summary(name, head, read(results)[name, head])}")
            sys.stdout.flush()


def summary(name: str, head: str, lines: list[dict[str, Any]]) -> str:
    """One line for people: what is not equal, or that all is."""
    bad = [f"{line['check']} {line['outcome']}: {line['detail']}" for line in lines if is_bad(line)]
    refused = [
        f"{line['check']} refused: {line['detail']}"
        for line in lines
        if line["outcome"] == "refused"
    ]
    text = "; ".join(bad + refused) or "all equal"
    return f"{name} ({head}) {lines[-1].get('seconds', '?')}s: {text}"


def is_bad(line: dict[str, Any]) -> bool:
    """Whether something else than equality or a refusal came of a check."""
    return line["outcome"] in BAD


def verdict(lines: list[dict[str, Any]], layout: str) -> str:
    """What came of a layout: how documents are laid out, why it is refused, or what is wrong."""
    began = next((line for line in lines if line["check"] == f"{layout}/start"), None)
    if began is None:
        made = next((line for line in lines if line["check"] == "make"), None)
        why = f": {made['detail'].rpartition(' (')[0]}" if made else ""
        return "no small model of it is made here" + why
    if began["outcome"] == "refused":
        return "refused: " + began["detail"].removeprefix("ConfigError: ")
    other = "unpacked" if layout == "packed" else "packed"
    rest = [line for line in lines if not line["check"].startswith(f"{other}/")]
    if wrong := [f"{line['check']} {line['outcome']}" for line in rest if is_bad(line)]:
        return "wrong: " + ", ".join(wrong)
    words, *found = began["detail"].split("; ")
    text = _layout(found)
    options = [word for word in words.split() if not word.startswith("data.packing")]
    text += f" with `{' '.join(options)}`" if options else ""
    lacking = [line["check"] for line in rest if line["outcome"] in ("refused", "unusable")]
    return f"{text}; not {', '.join(lacking)}" if lacking else text


def _layout(found: list[str]) -> str:
    """A few words for how the launcher keeps documents apart."""
    if found[1:] and found[1].startswith("documents of one length"):
        return "padded; lines of one length at a time"
    if found[:1] == ["padded"]:
        return "; ".join(["padded", *(note.partition("model has ")[2] for note in found[1:])])
    once = [note.partition(" runs once")[0] for note in found[1:]]
    return f"yes; {', '.join(once)} once a document" if once else "yes"


def table(found: dict[tuple[str, str], list[dict[str, Any]]], head: str) -> list[str]:
    """A Markdown table of the architectures with this head."""
    lines = ["| architecture | packed | `data.packing=false` |", "|---|---|---|"]
    for (name, own), checks in sorted(found.items()):
        if own == head:
            cells = [
                shorten(_plain(verdict(checks, layout)), 200, placeholder=" ...")
                for layout in ("packed", "unpacked")
            ]
            lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return lines


def _plain(text: str) -> str:
    """Words of a cell, without the folder that the model was made in."""
    text = re.sub(r"'/\S*/base'", "the model", text)
    return re.sub(r"/\S*/base\b", "its folder", text).replace("|", "\\|")


def engine_table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """A Markdown table of what was trained under DeepSpeed; nothing if nothing was."""
    rows = [(name, checks) for (name, head), checks in sorted(found.items()) if head == "engine"]
    if not rows:
        return []
    lines = ["## Stopped and resumed under DeepSpeed", ""]
    lines += ["| architecture | ZeRO-2 and 3, 1 and 2 ranks |", "|---|---|"]
    for name, checks in rows:
        lines.append(f"| `{name}` | {'; '.join(_other(checks)) or 'equal'} |")
    return [*lines, ""]


def _other(checks: list[dict[str, Any]]) -> list[str]:
    return [f"{c['check']} {c['outcome']}" for c in checks if c["outcome"] not in ("equal", "")]


def details(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Every check that is not equal."""
    lines = []
    for (name, head), checks in sorted(found.items()):
        for line in checks:
            if line["check"] != END and line["outcome"] != "equal":
                lines.append(f"{name} ({head}) {line['check']}: {line['outcome']} {line['detail']}")
    return lines


def write(path: Path, found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Write the tables as a page; docs/models.md has what a user decides by, held by a test."""
    import transformers

    section = [
        "# Architectures",
        "",
        f"Small random models of every architecture of transformers {transformers.__version__}, by"
        " `python tests/bench/families.py`.",
        "`yes` and `padded`: losses, gradients, exports and answers are those of plain"
        " transformers; `padded` says why each",
        "record has a line of its own. `not`: what transformers lacks for it, such as `recompute`"
        " (`model.gradient_checkpointing`).",
        "`refused`: before anything starts, with the reason. `wrong`: what is named is not; an"
        " export that is wrong is found by its",
        "verification, after training.",
        "",
        "## Language models",
        "",
        *table(found, "causal"),
        "",
        "## Classifiers",
        "",
        *table(found, "classes"),
        "",
        "## Models of images and texts",
        "",
        *table(found, "images"),
        "",
        *engine_table(found),
    ]
    path.write_text("\n".join(section).rstrip() + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--head", choices=("causal", "classes", "images", "engine"))
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--results", type=Path, default=Path("/tmp/families.jsonl"))
    parser.add_argument("--summary", type=Path, help="write every check that is not equal")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    parser.add_argument("--list", action="store_true", help="print the architectures")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

    from support.families import MAIN, architectures

    every = [
        (one.name, head)
        for head in ("causal", "classes", "images")
        for one in architectures().values()
        if head in one.heads and options.head in (None, head)
    ]
    if options.head == "engine":
        every = [(name, "engine") for name in MAIN]
    if options.list:
        print("\n".join(f"{name} {head}" for name, head in every))
        return
    found = read(options.results)
    ended = {key for key, lines in found.items() if any(line["check"] == END for line in lines)}
    failed = {key for key, lines in found.items() if any(map(is_bad, lines))}
    if options.only:
        asked = [key for key in every if key[0] in options.only]
    elif options.failed:
        asked = [key for key in every if key in failed or key not in ended]
    elif options.write or options.summary:
        asked = []
    else:
        asked = [key for key in every if key not in ended]
    logs = Path(tempfile.mkdtemp(prefix="families-logs-"))
    sweep(asked, options.results, logs, options.jobs, options.limit)
    shutil.rmtree(logs)
    found = read(options.results)
    if options.summary:
        options.summary.write_text("\n".join(details(found)) + "\n")
    if options.write:
        write(options.write, found)


if __name__ == "__main__":
    main()
