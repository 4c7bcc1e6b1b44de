"""`launcher data prepare` beside other tools on the same chats, in turns.

    python tests/bench/prepare_side.py CHATS.jsonl TOKENIZER --turns 3 \\
        --peer "TRL=OTHER/python tests/bench/prepare_trl.py {data} {tokenizer} {length} {cpus}"

A peer's last line on stdout is a JSON object with tokens, targets and packs. Seconds are those of
the whole command, imports included, CPU seconds and memory those of all its processes. Memory is
the largest sum of proportional set sizes, taken five times a second: pages that processes share
are counted once. `--megabytes N` makes a file of that size first, of the words of CHATS in turns
of about the same lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """What one run took: seconds, CPU seconds, MiB; and what came of it."""

    seconds: float
    cpu: float
    memory: float
    result: dict[str, Any]


def run(command: list[str]) -> Run:
    """Run a command to its end and watch its processes."""
    before, begun, peak = _cpu(), time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=-1
        ) as child:
            while child.poll() is None:
                peak = max(peak, sum(map(_memory, _tree(child.pid))))
                time.sleep(0.2)
            seconds = time.perf_counter() - begun
            assert child.stdout is not None
            lines = child.stdout.read().strip().splitlines()
        if child.returncode:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)} failed:\n{errors.read()[-4000:]}")
    return Run(seconds, _cpu() - before, peak, json.loads(lines[-1]))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    return found


def _memory(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def ours(data: Path, tokenizer: str, length: int) -> Run:
    """The launcher's preparation into an empty cache."""
    from launcher.data.cache import TokenCache
    from launcher.data.pack.mixture import make_order

    cache = tempfile.mkdtemp(prefix="bench-side-")
    options = [f"model.name={tokenizer}", f"data.train={data}", f"data.max_length={length}"]
    options += [f"data.cache={cache}", "data.validation_share=0", "eval=none"]
    command = [sys.executable, "-m", "launcher.cli", "data", "prepare", *options]
    # As the peers do, it ends with its result as one line.
    folders = "import json,subprocess,sys;print(json.dumps(json.loads(subprocess.run("
    folders += "sys.argv[1:],stdout=subprocess.PIPE,check=True).stdout)))"
    done = run([sys.executable, "-c", folders, *command])
    opened = TokenCache.open(done.result["train"])
    order = make_order(opened, length, 0)
    index = opened.index
    result = {"tokens": index.tokens, "targets": index.target_tokens, "packs": order.num_packs}
    shutil.rmtree(cache)
    return done._replace(result=result)


def synthetic(data: Path, megabytes: int) -> Path:
    """A file of chats whose texts are drawn from the words of `data`."""
    rng = random.Random(0)
    with open(data) as file:
        chats = [json.loads(line)["messages"] for line in file]
    words = [word for chat in chats for turn in chat for word in turn["content"].split(" ")]
    target = Path(tempfile.mkdtemp(prefix="bench-data-")) / f"{megabytes}MB.jsonl"
    left = megabytes * 1_000_000
    with open(target, "w") as file:
        while left > 0:
            made = []
            for turn in rng.choice(chats):
                at, count = rng.randrange(len(words)), turn["content"].count(" ") + 1
                made.append({"role": turn["role"], "content": " ".join(words[at : at + count])})
            left -= file.write(json.dumps({"messages": made}) + "\n")
    return target


def main() -> None:
    """Run all in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--megabytes", type=int, default=0)
    options = parser.parse_args()
    length = options.max_length
    data = synthetic(options.data, options.megabytes) if options.megabytes else options.data
    runs: dict[str, list[Run]] = {"launcher": []}
    for _ in range(options.turns):
        runs["launcher"].append(ours(data, options.tokenizer, length))
        for peer in options.peer:
            name, _, text = peer.partition("=")
            values = {"data": data, "tokenizer": options.tokenizer, "length": length}
            command = shlex.split(text.format(**values, cpus=os.cpu_count()))
            runs.setdefault(name, []).append(run(command))
    print(f"{data.stat().st_size / 1e6:.1f} MB, {options.turns} turns, {os.cpu_count()} CPUs")
    for name, all_runs in runs.items():
        seconds, cpu, memory = (
            statistics.median(values) for values in list(zip(*all_runs, strict=True))[:3]
        )
        result = all_runs[0].result
        fill = result["tokens"] / (result["packs"] * length)
        print(f"{name}: {seconds:.1f} s, {cpu:.1f} CPU s, {memory:,.0f} MiB, {fill:.2%} full")
        print("  ", json.dumps(result), [round(one.cpu, 1) for one in all_runs])


if __name__ == "__main__":
    main()
