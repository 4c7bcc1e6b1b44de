"""Ranks that share the rows of a model say of them what each says alone, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import caches
from support.adapted import FAMILIES
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

#: Of documents that are longer than a rank's part of a row, and fewer tokens than ranks.
LENGTHS = (40, 3, 9, 17, 64, 2, 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_families_are_the_same_where_ranks_share_their_rows(tmp_path: Path, ranks: int) -> None:
    rng = np.random.default_rng(0)
    records = [(rng.integers(3, 290, n).tolist(), [0] + [1] * (n - 1)) for n in LENGTHS]
    caches.write(tmp_path / "cache", records, max_length=128)
    cases = [{"name": name, "attention": "launcher_document"} for name in FAMILIES]
    turning = {"rope_type": "dynamic", "factor": 2.0}  # by the longest position that it sees
    cases.append({"name": "llama", "attention": "launcher_document", "rope": turning})
    about: dict[str, Any] = {"cache": str(tmp_path / "cache"), "cases": cases}
    (tmp_path / "cases.json").write_text(json.dumps(about))
    worker, out = "tests/health/sequence_worker.py", tmp_path / "out.json"
    run_ranks(worker, str(tmp_path / "cases.json"), str(out), ranks=ranks, timeout_s=280)
    results = json.loads(out.read_text())
    refused = [
        found["name"] for found in results if "refused" in found and found["layout"] == "row"
    ]
    assert refused == ["llama"]
    for found in results:
        name, layout = found.pop("name"), found.pop("layout")
        if layout != "row" or found.get("refused"):
            assert "ranks cannot share a row" in found["refused"], name
        else:
            assert max(found.values()) < 1e-5, (name, found)
