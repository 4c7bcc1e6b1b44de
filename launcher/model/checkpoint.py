"""Checkpoints as they lie in a run folder: which there are, which are whole, what they hold.

`launcher.train.saving` writes them and says how they are laid out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.model.fragments import FragmentReader

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

    def damage(self) -> str:
        """What is wrong with the files, by size and hash; empty if nothing is."""
        for name, expected in self.manifest["files"].items():
            path = self.path / name
            try:
                size = path.stat().st_size
            except OSError:
                return f"{name} is missing"
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
        names = list(self.manifest["files"])
        with ThreadPoolExecutor(8) as pool:  # reading and hashing release the interpreter
            found = pool.map(hash_file, [self.path / name for name in names])
            for name, digest in zip(names, found, strict=True):
                if digest != self.manifest["files"][name]["blake2b"]:
                    return f"the content of {name} has changed"
        return ""


def hash_of(content: bytes) -> str:
    """The digest of a file's content, as a manifest holds it."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def hash_file(path: Path) -> str:
    """The same of a file on disk."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


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
        if not damage:
            return candidate
        warn(f"skipping the damaged checkpoint {candidate.path.name}: {damage}")
    return None
