"""The journal of answers: what is finished is kept, anything else does not count."""

from launcher.evals.journal import Journal
from launcher.evals.records import Generation

ANSWERS = [
    Generation(i, f"d:{i}", "q", "r", f"line\nbreak\u2028 {i}", cut=i == 1) for i in range(4)
]


def test_all_ranks_answers_come_back(tmp_path):
    for rank in (0, 1):
        writer = Journal(tmp_path / "j", "tuned", "k", rank)
        writer.append(ANSWERS[rank : rank + 1])
        writer.append(ANSWERS[rank + 2 : rank + 3])
    assert Journal(tmp_path / "j", "tuned", "k", 0).read() == ANSWERS


def test_what_a_kill_cut_short_spoils_nothing(tmp_path):
    Journal(tmp_path, "tuned", "k", 0).append(ANSWERS[:2])
    path = tmp_path / "tuned.0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal(tmp_path, "tuned", "k", 0)
    again.append(ANSWERS[2:])
    assert again.read() == [ANSWERS[0], *ANSWERS[2:]]


def test_answers_of_another_model_data_or_decoding_do_not_count(tmp_path):
    Journal(tmp_path, "tuned", "k", 0).append(ANSWERS)
    assert Journal(tmp_path, "tuned", "other", 0).read() == []
    assert Journal(tmp_path, "base", "k", 0).read() == []
    (tmp_path / "tuned.1.jsonl").write_text('[]\n3\n{"key": "k"}\n{"key": "k", "id": 1}\n\x00\n')
    assert Journal(tmp_path, "tuned", "k", 0).read() == ANSWERS


def test_stored_results_leave_no_journal(tmp_path):
    Journal(tmp_path, "tuned", "k", 0).append(ANSWERS)
    Journal(tmp_path, "base", "k", 0).append(ANSWERS)
    Journal(tmp_path, "tuned", "k", 1).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["base.0.jsonl"]


def test_a_part_is_read_apart_and_cleared_with_the_whole(tmp_path):
    whole = Journal(tmp_path, "tuned", "k", 0)
    part = whole.part("new: a/b")
    whole.append(ANSWERS[:1])
    part.append(ANSWERS[1:])
    assert (whole.read(), part.read()) == (ANSWERS[:1], ANSWERS[1:])
    assert whole.part("other").read() == []
    whole.clear()
    assert (whole.read(), part.read()) == ([], [])
