"""What a rank imports until its first step is logged, and the CPU seconds that this takes.

usage: python tests/bench/imports.py [--turns 3] [OVERRIDE ...]

One rank, started as the supervisor of a run starts it, trains a small Llama on chats: LoRA with
ZeRO-2 (which a key of DeepSpeed's brings to the only rank), unless the overrides say otherwise. The
table has the medians of the turns, caches warm, a line a package: CPU seconds of its own code,
without what it imports in its turn.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]
# An installation has its bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from support.imported import of_rank  # noqa: E402
from support.project import Project, conversations  # noqa: E402

LEAST_S = 0.02
ZERO = "engine.extra={zero_optimization:{reduce_bucket_size:1000000}}"


def table(turns):
    """Lines of the table; what is quicker than LEAST_S stands in one line."""
    by_name = [{name: (count, own) for name, count, own in turn.by_package()} for turn in turns]
    rows = {
        name: (count, statistics.median(turn.get(name, (0, 0.0))[1] for turn in by_name))
        for name, (count, _) in by_name[-1].items()
    }
    shown = sorted((n for n in rows if rows[n][1] >= LEAST_S), key=lambda n: -rows[n][1])
    rest = [rows[name] for name in rows if name not in shown]
    yield f"{'package':<20}{'modules':>8}{'CPU s':>8}"
    for name in shown:
        yield f"{name:<20}{rows[name][0]:>8}{rows[name][1]:>8.2f}"
    counted = sum(count for count, _ in rest)
    yield f"{f'{len(rest)} others':<20}{counted:>8}{sum(own for _, own in rest):>8.2f}"
    total = statistics.median(turn.total_s for turn in turns)
    yield f"{'all imports':<20}{len(turns[-1].seconds):>8}{total:>8.2f}"
    process = statistics.median(turn.process_s for turn in turns)
    yield f"{'process, to step 1':<28}{process:>8.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("overrides", nargs="*", default=["peft=lora", ZERO])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.write_data(conversations(40))
        of_rank(project, "warm-up", *options.overrides)
        turns = [of_rank(project, f"{i}", *options.overrides) for i in range(options.turns)]
    print("\n".join(table(turns)))


if __name__ == "__main__":
    main()
