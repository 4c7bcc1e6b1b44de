"""Throughput, utilisation and memory on one GPU, beside TRL where it is installed.

    python tests/bench/gpu.py                                     # the table of docs/performance.md
    python tests/bench/gpu.py --models 0.6b --steps 20 --json result.json
    python tests/bench/gpu.py --device cpu --models tiny --steps 3 --length 128    # does it run?

Models are randomly initialised and made offline. Every row is measured in a process of its own
(`gpu_child.py`), so that peak memory and the time to the first step are that row's. A row that runs
out of memory is tried again with half the micro-batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_models

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("gpu_child.py")
COLUMNS = (
    ("model", "{model}"),
    ("method", "{method}"),
    ("checkpointing", "{checkpointing}"),
    ("tool", "{tool}"),
    ("attention", "{attention}"),
    ("micro", "{micro}"),
    ("tokens/s", "{tokens_per_s:,.0f}"),
    ("target tokens/s", "{target_tokens_per_s:,.0f}"),
    ("MFU of measured peak", "{mfu_measured:.1%}"),
    ("MFU of data sheet", "{mfu_data_sheet:.1%}"),
    ("peak GiB", "{memory_gib:.1f}"),
    ("first step s", "{first_step_s:.1f}"),
)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, tools, switch = list(gpu_models.MODELS), ["launcher", "trl"], ["off", "on"]
    parser.add_argument("--models", nargs="+", choices=names, default=names[1:])
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    parser.add_argument("--checkpointing", nargs="+", choices=switch, default=switch)
    parser.add_argument("--steps", type=int, default=12, help="the first 3 are not measured")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a pack")
    parser.add_argument("--documents", type=int, default=500, help="median length of a document")
    parser.add_argument("--sequences", type=int, default=8, help="packs of an optimizer step")
    parser.add_argument("--micro", type=int, default=4, help="packs of a forward, to begin with")
    parser.add_argument("--zero", type=int, default=2, choices=[0, 1, 2], help="ZeRO stage")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--folder", type=Path, help="where models and data go; default: temporary")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a row may take")
    parser.add_argument("--json", type=Path, help="write everything here, too")
    return parser.parse_args(argv)


def child(job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run `gpu_child.py` on a job; its result, or {"error": ...}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # TRL wants the variables of a launcher, even for one process.
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = {
        **os.environ,
        **ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    if job["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(CHILD), json.dumps({**job, "started": time.time()})]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {timeout_s:.0f} s"}
    results = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return (
        json.loads(results[-1])
        if results
        else {"error": f"exit code {done.returncode}, see stderr"}
    )


def measure(job: dict[str, Any], peaks: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """One row of the table, with the largest micro-batch that fits (halved from the job's on)."""
    while True:
        row = {**job, **child(job, timeout_s)}
        if row.get("error") != "out of memory" or job["micro"] == 1:
            break
        job = {**job, "micro": job["micro"] // 2}
    for key, peak in (("mfu_measured", peaks["measured"]), ("mfu_data_sheet", peaks["data_sheet"])):
        row[key] = row["flops_per_s"] / peak if peak and "flops_per_s" in row else None
    return row


def cell(template: str, row: dict[str, Any]) -> str:
    """A value of the row, or a dash where there is none."""
    name = template[1:].partition(":")[0].rstrip("}")
    return "-" if row.get(name) is None else template.format(**row)


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    cells = [cell(template, row) for _, template in COLUMNS]
    if "error" in row:
        cells[6] = row["error"]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> int:
    """Measure everything asked for; exit code 1 if no row could be measured."""
    options = parse(argv)
    sys.stdout.reconfigure(line_buffering=True)
    probe = child({"tool": "probe", "device": options.device}, options.timeout)
    if "error" in probe:
        print(f"cannot use {options.device}: {probe['error']}", file=sys.stderr)
        return 1
    peaks = {"measured": probe["matmul_flops"], "data_sheet": probe["data_sheet_flops"]}
    sheet = f"{peaks['data_sheet'] / 1e12:.0f}" if peaks["data_sheet"] else "unknown"
    print(f"{probe['device_name']}, {probe['versions']}, {time.strftime('%Y-%m-%d')}")
    print(
        f"matmul peak {peaks['measured'] / 1e12:.3g} TFLOP/s measured, {sheet} on the data sheet\n"
    )
    print(f"| {' | '.join(name for name, _ in COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    tools = [tool for tool in options.tools if tool != "trl" or importlib.util.find_spec("trl")]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder = (options.folder or Path(temporary)) / name
            gpu_models.write_config(name, folder)
            for checkpointing in options.checkpointing:
                for tool in tools:
                    job = {
                        "tool": tool,
                        "model": name,
                        "method": gpu_models.METHODS[name],
                        "checkpointing": checkpointing,
                        "folder": str(folder),
                        "micro": min(options.micro, options.sequences),
                        **{key: getattr(options, key) for key in _PASSED_ON},
                    }
                    rows.append(measure(job, peaks, options.timeout))
                    print(line(rows[-1]))
    if "trl" in options.tools and "trl" not in tools:
        print("\nTRL is not installed here: `pip install trl` adds its rows.")
    if options.json:
        arguments = {key: str(value) for key, value in vars(options).items()}
        report = {"time": time.time(), "options": arguments, "probe": probe, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1))
    return 0 if any("error" not in row for row in rows) else 1


_PASSED_ON = ("device", "steps", "length", "documents", "sequences", "zero")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
