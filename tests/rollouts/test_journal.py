"""Rollouts that are kept."""

import pytest

from launcher.core.errors import StorageError
from launcher.core.rundir import RunDir
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal

ANSWER = ScoredAnswer(
    place=0,
    number=1,
    draw=0,
    record=3,
    where="data.jsonl:4",
    prompt="Wie viel?",
    text="zwölf 東京",
    cut=False,
    score=0.1,
    reward=-0.4,
    advantage=1 / 3,
    is_learned=True,
    sub_scores={"form": None, "sum": 0.25},
    errors=["sample_parse_error: no JSON"],
    prompt_tokens=[1, 2],
    tokens=[3, 4],
    sampler_log_probs=[-0.1234567891234567, -1e-9],
    log_probs=[-0.3, -7.25],
    weight=2.0,
)


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path):
    journal = RolloutJournal(RunDir(tmp_path), 2)
    assert journal.read(12) is None
    journal.write(12, [ANSWER, ANSWER])
    assert journal.path(12).name == "step-00000012.jsonl"
    assert journal.read(12) == [ANSWER, ANSWER]


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: "", lambda t: t + "{}\n"])
def test_a_damaged_rollout_is_told(tmp_path, change):
    journal = RolloutJournal(RunDir(tmp_path), 2)
    journal.write(0, [ANSWER, ANSWER])
    path = journal.path(0)
    path.write_text(change(path.read_text()))
    with pytest.raises(StorageError, match="no whole rollout") as caught:
        journal.read(0)
    assert f"rm {path}" in str(caught.value)
