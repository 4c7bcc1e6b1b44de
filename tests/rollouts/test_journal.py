"""Rollouts that are kept."""

from dataclasses import replace

import pytest

from launcher.core.errors import StorageError
from launcher.core.rundir import RunDir
from launcher.rollouts.journal import RolloutJournal
from support.rollouts import answered

ANSWER = answered(
    **{"number": 1, "record": 3, "where": "data.jsonl:4", "prompt": "Wie viel?"},
    **{"text": "zwölf 東京", "score": 0.1, "reward": -0.4, "advantage": 1 / 3, "weight": 2.0},
    sub_scores={"form": None, "sum": 0.25},
    errors=["sample_parse_error: no JSON"],
    **{"prompt_tokens": [1, 2], "tokens": [3, 4], "log_probs": [-0.3, -7.25]},
    sampler_log_probs=[-0.1234567891234567, -1e-9],
)


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path):
    journal = RolloutJournal(RunDir(tmp_path), 2)
    assert journal.read(12) is None
    journal.write(12, [ANSWER, ANSWER])
    assert journal.path(12).name == "step-00000012.jsonl"
    assert journal.read(12) == [ANSWER, ANSWER]


@pytest.mark.parametrize("odd", ["a\u2028b", "a\u0085b\x1cc", "\ud83d", "a\r\nb\n"])
def test_texts_that_look_like_several_lines_or_like_none_are_kept(tmp_path, odd):
    journal = RolloutJournal(RunDir(tmp_path), 2)
    own = replace(ANSWER, text=odd, errors=[odd], messages=[{"role": "user", "content": odd}])
    journal.write(0, [own, ANSWER])
    assert journal.read(0) == [own, ANSWER]


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: "", lambda t: t + "{}\n"])
def test_a_damaged_rollout_is_told(tmp_path, change):
    journal = RolloutJournal(RunDir(tmp_path), 2)
    journal.write(0, [ANSWER, ANSWER])
    path = journal.path(0)
    path.write_text(change(path.read_text()))
    with pytest.raises(StorageError, match="no whole rollout") as caught:
        journal.read(0)
    assert f"rm {path}" in str(caught.value)
