"""All evidence of one GPU in one command: smoke, tests, benchmark, ablations, profiles, peers.

    make gpu                                                    # nine minutes, gpu-evidence/
    python tests/gpu/evidence.py --minutes 4 --out FOLDER
    python tests/gpu/evidence.py --parts ablations --base "8b LoRA" --set model.compile=true
    python tests/gpu/evidence.py --device cpu --models tiny     # does it run?

Needs no network and installs nothing. Results are appended to results.jsonl as they come, and
evidence.md is written anew after each: a pass that is killed leaves what it had. Parts run in order
of value, each under a limit of its own; what a part does not use goes to the next. Exit code 1 if
something failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import gpu_cases
import gpu_here
import gpu_models
import gpu_page
import gpu_suite
from gpu_processes import TAIL, Measurements, Processes


@dataclass(frozen=True)
class Part:
    """A part of a pass: its seconds in nine minutes, and those without which it is left out."""

    name: str
    seconds: float
    least: float
    needs: tuple[str, ...]
    run: Callable[[Pass], None] = field(repr=False)


TRAINING = ("deepspeed", "hydra", "omegaconf", "peft")
#: Nothing is begun with less time, in seconds.
SHORTEST = 8.0
#: So long may one measurement take, or half of what its part has left.
LONGEST = 60.0
#: Few files, as they may have to travel.
LOGS = {"machine": "smoke.log", "smoke": "smoke.log", "tests": "tests.log"}


class Pass:
    """One pass: its options, its time, and what it has found so far."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.out: Path = options.out
        self.processes = Processes(self.out, scratch, options.device)
        self.results: list[dict[str, Any]] = []
        self.deadline = 0.0
        """When the part that runs must have ended, by `time.monotonic`."""
        self.part = ""
        self.peaks: dict[str, float | None] = {}
        self.facts = {
            "command": f"`{' '.join(['evidence.py', *options.words])}`",
            "date": gpu_page.stamp(),
            "minutes": options.minutes,
        }
        self._file = open(self.out / "results.jsonl", "w", encoding="utf-8")  # noqa: SIM115

    @property
    def left(self) -> float:
        """Seconds that the part has left."""
        return self.deadline - time.monotonic()

    def add(self, name: str, **values: Any) -> None:
        """A result of the part that runs: kept at once, and shown."""
        self._keep({"part": self.part, "name": name, **values})
        said = values.get("error") or values.get("text") or values.get("left_out") or ""
        if "tokens_per_s" in values:
            said = f"{values['tokens_per_s']:,.0f} tokens/s, {values['memory_gib']:.1f} GiB"
        print(f"  {self.part}: {name}: {said}", flush=True)

    def close(self, seconds: float) -> str:
        """The part has ended: sum it up."""
        found = [result for result in self.results if result["part"] == self.part]
        failed = [result["name"] for result in found if result.get("error")]
        out = [result["name"] for result in found if result.get("left_out")]
        passed = len(found) - len(failed) - len(out)
        text = f"{passed} of {len(found)} passed"
        text += f"; failed: {', '.join(failed)}" if failed else ""
        text += f"; left out: {', '.join(out)}" if out else ""
        summary = {"part": "summary", "name": self.part, "text": text, "seconds": seconds}
        self._keep({**summary, "failed": failed})
        return text

    def _keep(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        self._file.write(json.dumps({"time": time.time(), **result}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        text = gpu_page.page(self.facts, self.results)
        new = self.out / "evidence.part"
        new.write_text(text, encoding="utf-8")
        new.rename(self.out / "evidence.md")

    @property
    def failed(self) -> bool:
        """Whether anything failed so far."""
        return any(result.get("error") for result in self.results)

    def end(self) -> None:
        """No process is left, and all is in the files."""
        self.processes.end_all()
        self._file.close()


# ---- the parts


def machine(run: Pass) -> None:
    """What is here, and what its matrix units and memory reach."""
    measurements = Measurements(run.processes, LOGS["machine"])
    job = {"tool": "probe", "device": run.options.device}
    found = measurements.measure(job, {}, run.left)
    run.peaks = {
        "measured": found.get("matmul_flops"),
        "data_sheet": found.get("data_sheet_flops"),
    }
    run.add(found.get("device_name", "device"), **{**found, **gpu_here.facts()})


def smoke(run: Pass) -> None:
    """`launcher train` of a tiny model to its end, with adapters, evaluation and export."""
    sums = [
        {"prompt": f"{a} plus {b} is", "completion": f"{a + b}"}
        for a in range(20)
        for b in range(20)
    ]
    data = run.scratch / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, sums)))
    words = ["model=tiny", "peft=lora", "data=prompt", f"data.train={data}", "data.max_length=128"]
    words += ["batch.sequences=8", "train.steps=20", "train.log_every_steps=1", "optim.lr=1e-2"]
    words += [f"run.root={run.scratch / 'runs'}", "run.name=smoke", "launch.processes=1"]
    command = [sys.executable, "-m", "launcher.cli", "train", *words]
    ended = run.processes.run(command, LOGS["smoke"], run.left)
    folder = run.scratch / "runs" / "smoke"
    if ended.problem:
        run.add("launcher train", error=ended.problem, output=ended.output[-TAIL:])
        return
    plan = json.loads((folder / "plan.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    said = f"{len(losses)} steps on {plan['device']} in {plan['precision']}, attention"
    said += f" {plan['attention']}, loss {losses[0]:.3f} to {losses[-1]:.3f}, {ended.seconds:.0f} s"
    problem = {} if plan["device"] == run.options.device else {"error": f"it ran so: {said}"}
    run.add("launcher train", text=said, plan=plan, **problem)


def tests(run: Pass) -> None:
    """The GPU tests, one file after the other: a hang in one costs only that one."""
    # Ranks are to start as they do for users.
    variables = {"LAUNCHER_TESTS_ZYGOTE": ""} if run.options.device == "cuda" else {}
    commands = gpu_suite.commands(run.options.tests)
    for number, (name, command) in enumerate(commands):
        if run.left < SHORTEST:
            run.add(name, left_out="no time left")
            continue
        limit = min(run.left, max(SHORTEST, 1.5 * run.left / (len(commands) - number)))
        ended = run.processes.run(command, LOGS["tests"], limit, variables)
        run.add(name, **gpu_suite.outcome(ended.output, ended.problem), seconds=ended.seconds)


def rows(run: Pass) -> None:
    """The benchmark's rows."""
    _measure(run, gpu_cases.rows(run.options.models))


def ablations(run: Pass) -> None:
    """The first row with one thing changed each."""
    base = gpu_cases.base(run.options.models, run.options.base)
    cases = gpu_cases.ablations(base, run.options.ablations, run.options.set)
    _measure(run, cases, base=base)


def profiles(run: Pass) -> None:
    """Two steps of some rows under torch's profiler."""
    _measure(run, gpu_cases.profiles(run.options.models), profile=True)


def peers(run: Pass) -> None:
    """The work of the first row, done by others."""
    base = gpu_cases.base(run.options.models, run.options.base)
    _measure(run, gpu_cases.peers(base), base=base)


def _measure(
    run: Pass,
    cases: list[gpu_cases.Case],
    *,
    base: gpu_cases.Case | None = None,
    profile: bool = False,
) -> None:
    """Measure each case in a process of its own, the next one getting ready meanwhile."""
    log = "profiles.log" if profile else "measurements.log"
    measurements = Measurements(run.processes, log)
    ready = [case for case in cases if not case.missing]
    for case in cases:
        about = {"model": case.model, "method": case.method, "tool": case.tool}
        about |= {"words": case.words, **({"base": base.name} if base else {})}
        if base is not None and case.tool == base.tool:
            extra = [
                *case.words[len(base.words) :],
                *(f"{k}={v}" for k, v in case.variables.items()),
            ]
            about["changed"] = " ".join(extra)
        if case.missing:
            run.add(case.name, **about, left_out=f"{', '.join(case.missing)} not installed")
        elif run.left < SHORTEST:
            run.add(case.name, **about, left_out="no time left")
        else:
            later = ready[ready.index(case) + 1 :]
            run.add(case.name, **{**about, **_row(run, measurements, case, later, profile)})
    measurements.close()


def _row(
    run: Pass,
    measurements: Measurements,
    case: gpu_cases.Case,
    later: list[gpu_cases.Case],
    profile: bool,
) -> dict[str, Any]:
    """A measurement with the largest micro-batch that fits (halved from the case's on)."""
    job = job_of(run, case, profile)
    measurements.prepare(job, case.variables)
    if later:
        measurements.prepare(job_of(run, later[0], profile), later[0].variables)
    while True:
        # One that hangs is not to take the time of all others.
        limit = min(run.left, max(LONGEST, run.left / 2))
        found = measurements.measure(job, case.variables, limit)
        if found.get("error") != "out of memory" or job["micro"] == 1 or run.left < SHORTEST:
            break
        job = {**job, "micro": job["micro"] // 2}
    for key, peak in run.peaks.items():
        has_both = peak and "flops_per_s" in found
        found[f"mfu_{key}"] = found["flops_per_s"] / peak if has_both else None  # type: ignore[operator]
    return {"micro": job["micro"], **found}


def job_of(run: Pass, case: gpu_cases.Case, profile: bool = False) -> dict[str, Any]:
    """What `gpu_child.py` is told: plain values."""
    options = run.options
    folder = run.scratch / case.model
    if not (folder / "config.json").is_file():
        gpu_models.write_config(case.model, folder)
    wants_trace = profile and case.name == gpu_cases.profiles(options.models)[0].name
    return {
        "tool": case.tool,
        "model": case.model,
        "method": case.method,
        "words": list(case.words),
        "checkpointing": gpu_cases.CHECKPOINTING in case.words,
        "folder": str(folder),
        "micro": min(case.micro or options.micro, options.sequences),
        "profile": profile,
        "trace": str(run.out / "trace.json.gz") if wants_trace else "",
        **{key: getattr(options, key) for key in ("device", "length", "documents", "sequences")},
        "steps": 4 if profile else options.steps,
    }


PARTS = (
    Part("machine", 70, 40, ("torch",), machine),
    Part("smoke", 60, 40, TRAINING, smoke),
    Part("tests", 130, 45, ("pytest", *TRAINING), tests),
    Part("rows", 130, 50, TRAINING, rows),
    Part("ablations", 80, 30, TRAINING, ablations),
    Part("profiles", 30, 25, TRAINING, profiles),
    Part("peers", 40, 30, (), peers),
)


# ---- the pass


def limits(parts: list[Part], seconds: float) -> list[tuple[Part, float]]:
    """The parts that fit into `seconds` together, the last ones left out first, with the time of
    each: its least, and of the rest a share as in nine minutes."""
    while len(parts) > 1 and sum(part.least for part in parts) > seconds:
        parts = parts[:-1]
    least = sum(part.least for part in parts)
    rest = max(0.0, seconds - least) / sum(part.seconds - part.least for part in parts)
    scale = min(1.0, seconds / least)
    return [(p, scale * p.least + rest * (p.seconds - p.least)) for p in parts]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, parts = list(gpu_models.MODELS), [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=Path("gpu-evidence"), help="where results go")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--models", nargs="+", choices=names, default=names[1:])
    parser.add_argument("--tests", nargs="*", help="of tests/gpu: varlen, zero, ...; default: all")
    parser.add_argument("--base", help="the row that is ablated and done by others: its name")
    parser.add_argument("--ablations", nargs="*", choices=list(gpu_cases.ABLATIONS))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar='"[NAME: ]KEY=VALUE ..."',
        help="one ablation more, of these overrides; may be given again",
    )
    parser.add_argument("--steps", type=int, default=8, help="the first 3 are not measured")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a pack")
    parser.add_argument("--documents", type=int, default=500, help="median length of a document")
    parser.add_argument("--sequences", type=int, default=8, help="packs of an optimizer step")
    parser.add_argument("--micro", type=int, default=4, help="packs of a forward, to begin with")
    options = parser.parse_args(argv)
    if options.base and options.base not in {case.name for case in gpu_cases.rows(options.models)}:
        parser.error(f"--base: no row {options.base!r}")
    options.words, options.out = argv, options.out.absolute()
    return options


def main(argv: list[str]) -> int:
    """Run a pass; 1 if something failed."""
    options = parse(argv)
    if missing := gpu_here.too_old():
        print(f"cannot begin: {'; '.join(missing)}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("smoke.log", "tests.log", "measurements.log", "profiles.log", "trace.json.gz"):
        (options.out / name).unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-evidence-"))
    run = Pass(options, scratch)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _run_parts(run)
    finally:
        run.end()
        shutil.rmtree(scratch, ignore_errors=True)
    print((options.out / "evidence.md").read_text(encoding="utf-8"))
    print(f"in {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")
    return 1 if run.failed else 0


def _run_parts(run: Pass) -> None:
    # What the machine reaches is what all else is held against.
    wanted = {"machine", *run.options.parts}
    chosen = [part for part in PARTS if part.name in wanted]
    timed = limits(chosen, 60 * run.options.minutes)
    run.deadline = time.monotonic()
    why = ""
    for part, seconds in timed:
        run.part = part.name
        run.deadline += seconds  # what others have left is added to its own
        began = time.monotonic()
        print(f"{part.name}: {run.left:.0f} s", flush=True)
        missing = [name for name in part.needs if not importlib.util.find_spec(name)]
        if why:
            run.add(part.name, left_out=why)
        elif missing:
            run.add(part.name, error=f"not installed: {', '.join(missing)}")
        else:
            try:
                part.run(run)
            except Exception as error:  # the other parts are evidence too
                traceback.print_exc()
                run.add(part.name, error=f"{type(error).__name__}: {error}")
        run.processes.end_all()
        print(f"{part.name}: {run.close(time.monotonic() - began)}", flush=True)
        if part.name == "machine" and any(_is_fatal(result) for result in run.results):
            why = "the device cannot be used"
    for part in chosen[len(timed) :]:
        run.part = part.name
        run.add(part.name, left_out=f"{run.options.minutes:g} minutes are too short")
        run.close(0.0)


def _is_fatal(result: dict[str, Any]) -> bool:
    """Whether the device has failed. A first import from a cold disk may only have been slow."""
    return bool(result.get("error")) and not result["error"].startswith("not finished")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
