"""The voting service as a process: tokens, headers, judges at once, kill -9, what it logs."""

from __future__ import annotations

import threading

import httpx2
import pytest

from launcher.ab.result import result
from support.studies import CLIENT, QUESTION, Voter, make_study, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A study of 40 prompts that is served for all tests of this file."""
    folder = tmp_path_factory.mktemp("served")
    study = make_study(folder / "study", 40)
    with serving("serve", study.folder, "--port", 0, log=folder / "log") as server:
        yield study, server.url, folder / "log"


def voter(served, name: str) -> Voter:
    study, url, _ = served
    return Voter(url, study.invite(name))


def test_a_judge_gets_question_order_texts_and_own_votes(served):
    alice = voter(served, "alice")
    found = alice.study()
    assert found["question"] == QUESTION
    assert found["judge"] == "alice"
    assert sorted(found["items"]) == list(range(1, 41))
    item = found["items"][0]
    shown = alice.ask("GET", f"items/{item}").json()
    texts = {f"first {item - 1}", f"second {item - 1}"}
    assert {shown["left"], shown["right"]} == texts
    alice.vote(item, "left", "näher am Ton 🙂")
    alice.vote(item, "bad", "doch nicht")
    assert alice.study()["votes"] == [{"item": item, "choice": "bad", "comment": "doch nicht"}]
    assert alice.ask("DELETE", f"votes/{item}").status_code == 200
    assert alice.study()["votes"] == []


@pytest.mark.parametrize("token", ["", "x", "a" * 32, "' OR 1=1 --", "é"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "study"), ("GET", "items/1"), ("PUT", "votes/1"), ("DELETE", "votes/1")],
)
def test_without_a_token_there_is_nothing(served, token, method, path):
    """A forged token gets what a path gets that does not exist."""
    _, url, _ = served
    body = {"choice": "left"} if method == "PUT" else None
    forged = Voter(url, token).ask(method, path, body)
    nowhere = CLIENT.request(method, f"{url}/api/no-such-thing")
    assert forged.status_code == nowhere.status_code == 404
    assert forged.json() == nowhere.json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("votes/41", {"choice": "left"}, 404),
        ("votes/0", {"choice": "left"}, 422),
        (f"votes/{1 << 80}", {"choice": "left"}, 422),
        ("votes/1", {"choice": "a"}, 422),
        ("votes/1", {"choice": "left", "comment": "x" * 4001}, 422),
        ("votes/1", {"choice": "left", "comment": "\ud800"}, 422),
        ("votes/1", {"choice": "left", "seconds": -1}, 422),
        ("votes/1", {"choice": "left", "comment": "x" * 70_000}, 413),
        ("votes/1", None, 422),
    ],
)
def test_what_is_no_vote_is_refused(served, path, body, code):
    mallory = voter(served, "mallory")
    assert mallory.ask("PUT", path, body).status_code == code
    assert mallory.study()["votes"] == []


def test_a_body_of_unknown_length_is_refused(served):
    _, url, _ = served
    answer = CLIENT.put(f"{url}/api/votes/1", content=iter([b"x" * 10]))
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg", "/api/study", "/no"])
def test_every_response_is_locked_down(served, path):
    study, url, _ = served
    answer = CLIENT.get(url + path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "model-one" not in answer.text
    assert "server" not in answer.headers


def test_judges_at_once_lose_no_vote_to_each_other(served):
    study, _, _ = served
    names = [f"judge {number}" for number in range(4)]
    voters = [voter(served, name) for name in names]
    threads = [
        threading.Thread(target=lambda who=who: [who.vote(i, "tie") for i in range(1, 41)])
        for who in voters
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = result(study.folder)
    counts = {row["name"]: row["tie"] for row in made["judges"]}
    assert [counts[name] for name in names] == [40] * 4


def test_the_same_vote_many_times_at_once_is_one(served):
    study, _, _ = served
    eager = voter(served, "eager")
    threads = [threading.Thread(target=eager.vote, args=(5, "bad")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [vote["item"] for vote in eager.study()["votes"]] == [5]


def test_no_token_is_logged(served):
    study, url, log = served
    who = voter(served, "logged")
    who.vote(1, "left")
    who.ask("PUT", "votes/1", {"choice": "nonsense"})
    assert who.token not in log.read_text()


def test_a_killed_server_has_lost_no_vote_that_it_acknowledged(tmp_path):
    study = make_study(tmp_path / "study", 100)
    tokens = [study.invite(name) for name in ("alice", "bob")]
    acknowledged: list[list[int]] = [[], []]
    log = tmp_path / "log"

    def judge_on(url: str, number: int) -> None:
        who = Voter(url, tokens[number])
        try:
            for item in range(len(acknowledged[number]) + 1, 101):
                who.vote(item, "right")
                acknowledged[number].append(item)
        except httpx2.HTTPError:
            return  # the server is gone

    for _ in range(2):
        before = len(acknowledged[0])
        with serving("serve", study.folder, "--port", 0, log=log) as server:
            threads = [
                threading.Thread(target=judge_on, args=(server.url, number)) for number in (0, 1)
            ]
            for thread in threads:
                thread.start()
            while len(acknowledged[0]) < before + 5 and threads[0].is_alive():
                threads[0].join(0.005)
            server.kill()
            for thread in threads:
                thread.join()
        study.check()
        for token, votes in zip(tokens, acknowledged, strict=True):
            kept = {vote["item"] for vote in study.votes_of(study.judge_of(token))}
            assert set(votes) <= kept
            # One may have been saved whose answer did not come through.
            assert len(kept) <= len(votes) + 1
    assert len(acknowledged[0]) >= 10


def test_a_study_that_cannot_be_written_says_so_and_goes_on(tmp_path):
    study = make_study(tmp_path / "study")
    token = study.invite("alice")
    with serving("serve", study.folder, "--port", 0, log=tmp_path / "log") as server:
        who = Voter(server.url, token)
        hidden = study.path.rename(tmp_path / "hidden.db")
        study.path.mkdir()
        answer = who.ask("PUT", "votes/1", {"choice": "left"})
        assert answer.status_code == 503
        assert "study.db" not in answer.text
        assert "unable to open" in (tmp_path / "log").read_text()
        study.path.rmdir()
        hidden.rename(study.path)
        who.vote(1, "left")
