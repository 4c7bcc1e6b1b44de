"""Reading logs while they grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.runs import logs
from launcher.runs.tail import Tail


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_tail_returns_every_whole_line_once(tmp_path_factory, pieces):
    file = tmp_path_factory.mktemp("tail") / "log"
    tail, seen = Tail(file), []
    for piece in pieces:
        with file.open("ab") as stream:
            stream.write(piece)
        seen += tail.lines()
    seen += tail.lines(final=True)
    whole = b"".join(pieces).split(b"\n")
    expected = [line.decode(errors="replace") for line in whole]
    assert seen == (expected if expected[-1] else expected[:-1])


def test_tail_of_an_absent_file_waits_for_it(tmp_path):
    tail = Tail(tmp_path / "log")
    assert tail.lines(final=True) == []
    (tmp_path / "log").write_text("a\nb")
    assert tail.lines() == ["a"]
    assert tail.lines(final=True) == ["b"]


def test_tail_starts_again_when_the_file_is_written_anew(tmp_path):
    (tmp_path / "log").write_text("first long line\n")
    tail = Tail(tmp_path / "log")
    assert tail.lines() == ["first long line"]
    (tmp_path / "log").write_text("new\n")
    assert tail.lines() == ["new"]


def test_tail_from_the_end_shows_only_what_comes(tmp_path):
    (tmp_path / "log").write_text("old\n")
    tail = Tail(tmp_path / "log", from_end=True)
    with (tmp_path / "log").open("a") as stream:
        stream.write("new\n")
    assert tail.lines() == ["new"]


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path)
    for attempt in (1, 2):
        run.attempt(attempt).mkdir(parents=True)
        write_json(run.attempt(attempt) / "job.json", {"backend": "local"})
        (run.attempt(attempt) / "prepare.log").write_text(f"preparing {attempt}\n")
        for rank in (0, 1):
            run.log(attempt, rank).write_text(f"rank {rank} of attempt {attempt}\n")
    run.set_status(State.succeeded, attempt=2, exit_code=0)
    return run


def test_logs_of_the_last_attempt_begin_with_the_preparation(run):
    assert list(logs.lines(run)) == ["preparing 2", "rank 0 of attempt 2"]
    assert list(logs.lines(run, follow=True)) == ["preparing 2", "rank 0 of attempt 2"]


def test_log_of_one_rank_and_attempt(run):
    assert list(logs.lines(run, rank=1, attempt=1)) == ["rank 1 of attempt 1"]


def test_ranks_started_directly_have_a_log_too(run):
    (run.attempt(2) / "job.json").unlink()
    assert list(logs.lines(run)) == ["rank 0 of attempt 2"]


def test_unknown_attempt_and_rank_name_what_there_is(run):
    with pytest.raises(ConfigError, match="attempts of this run: 1, 2"):
        list(logs.lines(run, attempt=3))
    with pytest.raises(ConfigError, match=r"prepare.log, rank-0.log, rank-1.log"):
        list(logs.lines(run, rank=5))
