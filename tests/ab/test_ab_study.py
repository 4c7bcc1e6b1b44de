"""Studies without a server: what is blind, what a vote means, what comes of votes."""

from __future__ import annotations

import sqlite3

import pytest

from launcher.ab import words
from launcher.ab.result import result
from launcher.ab.study import Study
from support.studies import make_study


def judge(study: Study, name: str):
    return study.judge_of(study.invite(name))


def votes_for(study: Study, who, preferred: dict[int, str]) -> None:
    """Votes for the answers that begin with these words; "tie" and "bad" stand for themselves."""
    for item, wanted in preferred.items():
        shown = study.shown(who, item)
        sides = {shown["left"].split()[0]: "left", shown["right"].split()[0]: "right"}
        assert study.vote(who, item, sides.get(wanted, wanted), "", 2.0)


def test_sides_and_order_are_each_judges_own_and_stay(tmp_path):
    study = make_study(tmp_path / "large", 200)
    alice, bob = judge(study, "alice"), judge(study, "bob")
    assert study.order(alice) == study.order(alice) != study.order(bob)
    assert sorted(study.order(alice)) == list(range(1, 201))
    lefts = {
        who: [study.shown(who, item)["left"].startswith("first") for item in range(1, 201)]
        for who in (alice, bob)
    }
    assert lefts[alice] != lefts[bob]
    for sides in lefts.values():
        assert 70 < sum(sides) < 130
    assert study.shown(alice, 7) == study.shown(alice, 7)
    assert study.shown(alice, 999) is None


def test_nothing_shown_names_a_model(study):
    alice = judge(study, "alice")
    told = str([study.question(), study.order(alice), study.shown(alice, 1)])
    assert "model-one" not in told
    assert "model-two" not in told


def test_only_the_hash_of_a_token_is_kept(study):
    token = study.invite("alice")
    assert study.judge_of(token).name == "alice"
    for path in study.folder.iterdir():
        assert token.encode() not in path.read_bytes()


def test_a_new_link_ends_the_old_one_and_keeps_the_votes(study):
    old = study.invite("alice")
    study.vote(study.judge_of(old), 1, "tie", "", None)
    new = study.invite("alice")
    assert study.judge_of(old) is None
    assert [vote["item"] for vote in study.votes_of(study.judge_of(new))] == [1]


@pytest.mark.parametrize("token", ["", " ", "x" * 32, "\ud800", "' OR 1=1 --"])
def test_a_forged_token_is_nobodys(study, token):
    study.invite("alice")
    assert study.judge_of(token) is None


def test_a_later_vote_replaces_and_undo_takes_back(study):
    alice = judge(study, "alice")
    assert study.vote(alice, 1, "left", "hm", 3.0)
    assert study.vote(alice, 1, "bad", "", 4.0)
    assert study.votes_of(alice) == [{"item": 1, "choice": "bad", "comment": ""}]
    study.undo(alice, 1)
    study.undo(alice, 1)
    assert study.votes_of(alice) == []
    assert not study.vote(alice, 99, "left", "", None)


def test_votes_are_counted_by_model_whatever_the_side(study):
    alice, bob = judge(study, "alice"), judge(study, "bob")
    votes_for(study, alice, {1: "second", 2: "second", 3: "first", 4: "tie", 5: "bad"})
    votes_for(study, bob, {1: "second", 2: "first", 4: "bad"})
    study.vote(bob, 6, "tie", "both say the same", None)
    made = result(study.folder)
    assert made["votes"] == {"a": 2, "b": 3, "tie": 2, "bad": 2}
    assert (made["wins"], made["losses"], made["equal"]) == (1.5, 1.5, 3)
    assert (made["prompts"], made["prompts_judged"]) == (12, 6)
    assert made["position"]["left"] + made["position"]["right"] == 5
    assert made["agreement"]["prompts"] == 3
    assert [(row["name"], row["b"], row["median_s"]) for row in made["judges"]] == [
        ("alice", 2, 2.0),
        ("bob", 1, 2.0),
    ]
    assert made["comments"] == [
        {"name": "bob", "prompt": "prompt 5", "choice": "tie", "comment": "both say the same"}
    ]
    assert made["verdict"] == "no evidence"


@pytest.mark.parametrize(("wanted", "verdict"), [("second", "better"), ("first", "worse")])
def test_the_verdict_is_on_the_second_model(tmp_path, wanted, verdict):
    study = make_study(tmp_path / "clear", 40)
    votes_for(study, judge(study, "alice"), dict.fromkeys(range(1, 41), wanted))
    made = result(study.folder)
    assert made["verdict"] == verdict
    assert made["p_value"] < 1e-4
    assert made["needed"] is None
    text = words.told(made)
    assert text.endswith(f"verdict: {verdict}")
    assert "of 40 prompts with a preference" in text


def test_one_who_always_takes_the_left_is_noticed(tmp_path, monkeypatch):
    # Of a seed by chance one in twenty studies would show a preference.
    monkeypatch.setattr("launcher.ab.study.secrets.token_hex", lambda size: "00" * size)
    study = make_study(tmp_path / "left", 80)
    alice = judge(study, "alice")
    for item in study.order(alice):
        study.vote(alice, item, "left", "", 0.2)
    made = result(study.folder)
    assert made["position"]["p_value"] < 0.01
    assert made["verdict"] == "no evidence"
    assert "look into it" in words.told(made)


def test_a_study_without_a_vote_has_a_result(study):
    made = result(study.folder)
    assert (made["win_rate"], made["verdict"], made["p_value"]) == (None, "no evidence", 1.0)
    assert "Nobody has preferred" in words.told(made)


def test_every_commit_waits_for_the_disk(study):
    """WAL with synchronous=FULL (2): what has been acknowledged outlives a power cut."""
    from launcher.ab import database

    with database.opened(study.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
        with pytest.raises(sqlite3.IntegrityError), database.transaction(db):
            db.execute("INSERT INTO votes VALUES (7, 7, 'a', 'a', '', NULL, 0)")
