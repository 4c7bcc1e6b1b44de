"""Checkpoints as they lie in a run folder: which there are, which are whole, what they hold.

`launcher.train.saving` writes them and says how they are laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.model import digests
from launcher.model.fragments import THREADS, FragmentReader

VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder with a readable manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def origin(self) -> dict[str, str]:
        """What the weights stand on (see `launcher.fingerprint.origin`); empty if not known."""
        return dict(self.manifest.get("origin", {}))

    @property
    def state(self) -> dict[str, Any]:
        """The loop's own counters."""
        return dict(self.manifest["state"])

    def weights(self) -> FragmentReader:
        """Trained weights by parameter name."""
        return FragmentReader(sorted(self.path.glob("weights-rank-*.safetensors")))

    def optimizer(self) -> FragmentReader:
        """Optimizer state, by `parameter|state name`."""
        return FragmentReader(sorted(self.path.glob("optimizer-rank-*.safetensors")))

    def damage(self, rank: int = 0, world_size: int = 1) -> tuple[int, str] | None:
        """What is wrong with the files, by size and digest; None if nothing is.

        Of several ranks each looks at a share of the content, and that which is first of all counts
        (the least of their answers). Raises `OSError` if a file cannot be read.
        """
        names = list(self.manifest["files"])
        for place, name in enumerate(names):
            try:
                size = (self.path / name).stat().st_size
            except FileNotFoundError:
                return place, f"{name} is missing"
            if size != (expected := self.manifest["files"][name]["bytes"]):
                return place, f"{name} has {size} bytes, not {expected}"
        mine = list(self._blocks())[rank::world_size]
        with ThreadPoolExecutor(THREADS) as pool:  # reading and hashing release the interpreter
            found = pool.map(
                lambda block: digests.of_block(self.path / block[0], *block[1:3]), mine
            )
            for (name, _, _, expected), digest in zip(mine, found, strict=True):
                if digest != expected:
                    return len(names) + names.index(name), f"the content of {name} has changed"
        return None

    def passed_over(self, damage: tuple[int, str]) -> str:
        """The warning where another is taken in its place."""
        return f"skipping the damaged checkpoint {self.path.name}: {damage[1]}"

    def _blocks(self) -> Iterator[tuple[str, int, int | None, str]]:
        """Of each block: file, offset, bytes (None: all that follows), digest."""
        for name, entry in self.manifest["files"].items():
            if isinstance(entry["blake2b"], str):  # of an earlier version
                yield name, 0, None, entry["blake2b"]
                continue
            for number, digest in enumerate(entry["blake2b"]):
                yield name, number * digests.BLOCK, digests.BLOCK, digest


def checkpoints(run: RunDir) -> list[Checkpoint]:
    """All complete checkpoints of a run, oldest first; files are not read."""
    found = []
    for path in sorted(run.checkpoints.glob("step-*")):
        manifest = read_json(path / "manifest.json")
        if isinstance(manifest, dict) and manifest.get("version") == VERSION:
            found.append(Checkpoint(path, manifest))
    return found


def newest_valid(
    run: RunDir, warn: Callable[[str], None], step: int | None = None
) -> Checkpoint | None:
    """The newest whole checkpoint (or that of `step`); damaged ones are skipped with a warning."""
    candidates = [c for c in reversed(checkpoints(run)) if step is None or c.step == step]
    for candidate in candidates:
        damage = candidate.damage()
        if damage is None:
            return candidate
        warn(candidate.passed_over(damage))
    return None
