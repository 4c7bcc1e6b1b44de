"""Python graders that attack what runs them, of `attacks.txt`, and what came of each.

`PYTHONPATH=. python tests/graders/hostile.py 1000` runs so many, an honest grader after each.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import GradersConfig
from launcher.core import processes
from launcher.graders.sandbox.pool import CodeSandbox

LIMITS = GradersConfig(timeout_s=1.0, memory_mb=128, file_mb=8, processes=16, workers=1)
_BLOCK = re.compile(r"^== (.+?)( !)? == (.+)\n((?:(?!==).*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Attack:
    """A body of `grade`, and what its result must say: one of some texts."""

    name: str
    only_within: bool
    """Whether namespaces alone hold it, so that it is not let loose without them."""
    says: tuple[str, ...]
    body: str

    def job(self, port: int, secret: Path) -> dict[str, Any]:
        """As a job of the sandbox; its targets are a port and a file of this machine."""
        body = self.body.replace("PORT", str(port)).replace("SECRET", str(secret))
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        return {"source": f"def grade(sample, item):\n{lines}", "item": {}, "sample": {}}

    def succeeds(self, found: dict[str, Any]) -> str:
        """What came of it, if that is none of what it must be."""
        said = " ".join(str(value) for name, value in found.items() if name != "output")
        return "" if any(text in said for text in self.says) else f"{self.name}: {said[:300]}"


def attacks() -> list[Attack]:
    """All of the file."""
    text = Path(__file__).with_name("attacks.txt").read_text(encoding="utf-8")
    return [
        Attack(name, bool(mark), tuple(says.split(" | ")), body)
        for name, mark, says, body in _BLOCK.findall(text)
    ]


def main(count: int) -> int:
    """Run `count` attacks; says what came out otherwise than it must, and what is left."""
    secret, known, wrong, longest = Path(__file__), attacks(), [], 0.0
    text, before = secret.read_bytes(), set(processes.descendants(os.getpid()))
    start = time.monotonic()
    with CodeSandbox(LIMITS) as sandbox:
        level = sandbox.level()
        known = [one for one in known if level == "namespaces" or not one.only_within]
        for number in range(count):
            attack, began = known[number % len(known)], time.monotonic()
            wrong.append(attack.succeeds(sandbox.run(attack.job(9, secret))))
            longest = max(longest, time.monotonic() - began)
            source = "def grade(sample, item): return item"
            if sandbox.run({"source": source, "item": number, "sample": {}}).get("score") != number:
                wrong.append(f"an honest grader after {attack.name}")
    left = set(processes.descendants(os.getpid())) - before
    told = {
        "attacks": count,
        "level": level,
        "wrong": len([*filter(None, wrong)]),
        "processes_left": len(left),
        "file_intact": secret.read_bytes() == text,
        "longest_s": round(longest, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
    print("\n".join([*dict.fromkeys(filter(None, wrong)), json.dumps(told)]))
    return 1 if any(wrong) or left else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
