"""Messages between ranks: over a group of their own, or over the default one where that fails."""

import json

import pytest

from support.ranks import run_ranks

pytestmark = pytest.mark.slow


def test_messages_go_over_a_group_of_their_own_or_over_the_default_one(tmp_path):
    run_ranks("tests/distributed/collectives_worker.py", str(tmp_path / "out.json"))
    first, second = json.loads((tmp_path / "out.json").read_text())
    for found in (first, second):
        wanted = {
            "sum": [2.0, 1.0, 2.0**-39],
            "max": 7,
            "objects": [{"rank": 0}, {"rank": 1}],
        }
        assert found["default"] == found["apart"] == found["fallback"] == wanted
        assert found["why"] == ""
        assert found["timeout"] == 90
    assert "nowhere0" in second["failed"]
    assert first["failed"]
