"""The router between two real endpoints, used with the real `openai` client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from launcher.ab import database, words
from launcher.ab.result import result
from launcher.ab.traffic import Traffic
from support.studies import CLIENT, serving

pytestmark = pytest.mark.slow


@dataclass
class Upstream:
    """A small OpenAI-compatible endpoint whose model says its name. `asked` holds what came in."""

    name: str
    url: str = ""
    asked: list[dict] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    go_on: threading.Event = field(default_factory=threading.Event)
    """A user who says "wait" gets one piece of a stream before, the others after it is set."""


def handler(upstream: Upstream) -> type[BaseHTTPRequestHandler]:
    """Requests to one upstream. What the user says decides how it fails."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, body: dict) -> None:
            self.send_raw(status, json.dumps(body).encode())

        def send_raw(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": upstream.name}, {"id": "other"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            upstream.asked.append(body)
            upstream.keys.add(self.headers["Authorization"])
            said = body["messages"][-1]["content"]
            if said == "overload":
                self.send(429, {"error": {"message": "too much", "type": "rate", "code": "slow"}})
            elif said == "odd":
                odd = {"nan": float("nan"), "low": float("-inf"), "half": "\ud800"}
                self.send(200, {**self.head("chat.completion"), "choices": [odd]})
            elif said == "deep":
                self.send_raw(200, b"[" * 200_000)
            elif said == "refused stream":
                self.send_raw(503, b'data: {"error": {"message": "full"}}\n\n', "text/event-stream")
            elif said == "nonsense":
                self.send(200, {})
                self.wfile.write(b"")
            elif body.get("stream"):
                self.stream(said)
            else:
                message = {"role": "assistant", "content": f"I am {upstream.name}"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self.send(200, {**self.head("chat.completion"), "choices": [choice]})

        def head(self, kind: str) -> dict:
            telling = {"model": upstream.name, "system_fingerprint": f"fp-{upstream.name}"}
            return {"id": "the-same-for-all", "object": kind, "created": 1, **telling}

        def stream(self, said: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            if said == "break":  # so that the end before it can be told from a proper one
                self.send_header("Content-Length", "100000")
            self.end_headers()
            self.close_connection = True
            endless = ["on and on "] * 1000 if said == "slow" else []
            for word in ("I ", "am ", upstream.name, *endless):
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {**self.head("chat.completion.chunk"), "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
                if said == "break" or (said == "wait" and not upstream.go_on.wait(30)):
                    return
                if said == "slow":
                    time.sleep(0.02)
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


@contextmanager
def endpoint(name: str) -> Iterator[Upstream]:
    """A real server of a small upstream."""
    upstream = Upstream(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(upstream))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    upstream.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield upstream
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Routed:
    """A router in front of two endpoints."""

    url: str
    upstreams: list[Upstream]
    client: openai.OpenAI
    db: object

    def ask(self, said: str = "Hi", **options):
        """A completion, as a user of the `openai` package asks for it."""
        messages = [{"role": "user", "content": said}]
        return self.client.chat.completions.create(model="ab", messages=messages, **options)


@pytest.fixture
def routed(tmp_path):
    """A router with two endpoints, `left` and `right`."""
    db = tmp_path / "traffic.db"
    with endpoint("left") as one, endpoint("right") as other:
        words = ("route", "--a", one.url, "--b", other.url, "--db", db, "--port", 0)
        with serving(*words, log=tmp_path / "log") as server:
            options = {"base_url": f"{server.url}/v1", "api_key": "sk-mine", "max_retries": 0}
            with openai.OpenAI(**options) as client:
                yield Routed(server.url, [one, other], client, db)


def text_of(answer) -> str:
    return answer.choices[0].message.content


def test_users_are_split_and_stay_where_they_are(routed):
    first = {name: text_of(routed.ask(user=name)) for name in map(str, range(24))}
    again = {name: text_of(routed.ask(user=name)) for name in first}
    assert first == again
    assert set(first.values()) == {"I am left", "I am right"}
    by_header = {
        name: text_of(routed.ask(extra_headers={"X-User": name})) for name in ("1", "2", "3")
    }
    assert by_header == {name: first[name] for name in by_header}
    for upstream in routed.upstreams:
        assert {body["model"] for body in upstream.asked} == {upstream.name}
        assert upstream.keys == {"Bearer sk-mine"}
    made = result(routed.db)
    assert made["sides"]["a"]["users"] + made["sides"]["b"]["users"] == 24
    assert made["sides"]["a"]["requests"] + made["sides"]["b"]["requests"] == 51


def test_answers_do_not_say_who_made_them(routed):
    answers = [routed.ask(user=str(n)) for n in range(8)]
    assert {answer.model for answer in answers} == {"ab"}
    assert {answer.system_fingerprint for answer in answers} == {None}
    assert len({answer.id for answer in answers}) == 8
    assert [model.id for model in routed.client.models.list()] == ["ab"]


def test_streams_are_passed_on_as_they_come(routed):
    stream = routed.ask("wait", user="1", stream=True)
    chunks = [next(stream)]
    for upstream in routed.upstreams:
        upstream.go_on.set()
    chunks += stream
    assert [chunk.choices[0].delta.content for chunk in chunks[:2]] == ["I ", "am "]
    assert len(chunks) == 3
    assert {chunk.model for chunk in chunks} == {"ab"}
    (identifier,) = {chunk.id for chunk in chunks}
    said = {"id": identifier, "value": 1}
    assert routed.client.post("/feedback", body=said, cast_to=object) == said
    with database.opened(routed.db) as db:
        (row,) = db.execute("SELECT * FROM requests").fetchall()
    assert row["status"] == 200
    assert 0 < row["first_s"] < row["total_s"]


def feedback(routed: Routed, identifier: str, value: object, **more: object):
    body = {"id": identifier, "value": value, **more}
    return CLIENT.post(f"{routed.url}/v1/feedback", json=body)


def test_feedback_is_counted_by_side_and_replaced(routed):
    for number in range(40):
        answer = routed.ask(user=str(number))
        likes = text_of(answer) == "I am right"
        assert feedback(routed, answer.id, 0).status_code == 200
        assert feedback(routed, answer.id, int(likes), comment="ok").status_code == 200
    made = result(routed.db)
    assert made["sides"]["a"]["mean_feedback"] == 0
    assert made["sides"]["b"]["mean_feedback"] == 1
    assert made["losses"] == 0
    assert made["wins"] == min(side["users"] for side in made["sides"].values())
    assert made["win_rate"] == 1
    assert len(made["comments"]) == 40
    assert "pairs of users that differ" in words.told(made)


def test_what_is_no_feedback_is_refused(routed):
    assert feedback(routed, "chatcmpl-guess", 1).status_code == 404
    for value in (2, -1.5, "good", None):
        assert feedback(routed, "chatcmpl-guess", value).status_code == 422


def test_errors_are_passed_on_and_counted(routed):
    with pytest.raises(openai.RateLimitError, match="too much"):
        routed.ask("overload", user="1")
    broken = routed.ask("break", user="1", stream=True)
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        list(broken)
    bad = CLIENT.post(f"{routed.url}/v1/chat/completions", content=b"{")
    assert bad.status_code == 400
    sides = result(routed.db)["sides"].values()
    assert sum(side["errors"] for side in sides) == 2
    assert sum(side["unfinished"] for side in sides) == 0


def post(routed: Routed, content: bytes | dict, **headers: str):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    url = f"{routed.url}/v1/chat/completions"
    return CLIENT.post(url, content=content, headers=headers)


def asking(said: str = "Hi", **more: object) -> dict:
    return {"messages": [{"role": "user", "content": said}], **more}


def test_a_user_is_one_however_they_are_named(routed):
    for number in range(12):
        named = asking(user=str(number))
        answers = [
            post(routed, asking(user=number)),
            post(routed, asking(user=None), **{"X-User": str(number)}),
            post(routed, named, **{"X-User": "other"}),
        ]
        said = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert len(set(said)) == 1
    made = result(routed.db)
    assert sum(side["users"] for side in made["sides"].values()) == 12


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, *(asking(user=user) for user in (True, 1.5, ["a"], {"a": 1}))]
)
def test_what_is_no_request_is_refused_and_not_counted(routed, body):
    assert post(routed, body).status_code == 400
    assert sum(side["requests"] for side in result(routed.db)["sides"].values()) == 0


def test_odd_answers_are_passed_on(routed):
    odd = post(routed, asking("odd", half="\ud800"))
    assert odd.status_code == 200
    assert odd.json()["model"] == "ab"
    assert odd.json()["choices"][0]["half"] == "\ud800"
    assert post(routed, asking("deep")).status_code == 502
    refused = post(routed, asking("refused stream", stream=True))
    assert refused.status_code == 503
    assert '"full"' in refused.text
    with database.opened(routed.db) as db:
        kept = [row["status"] for row in db.execute("SELECT status FROM requests ORDER BY time")]
    assert kept == [200, 502, 503]


def test_a_client_that_goes_away_is_counted(routed):
    with routed.ask("slow", user="1", stream=True) as stream:
        next(iter(stream))
    end = time.monotonic() + 20
    while time.monotonic() < end:
        sides = result(routed.db)["sides"].values()
        if not sum(side["unfinished"] for side in sides):
            break
        time.sleep(0.05)
    with database.opened(routed.db) as db:
        assert [row["status"] for row in db.execute("SELECT status FROM requests")] == [499]


def test_an_endpoint_that_is_away_gives_502(tmp_path):
    with endpoint("left") as one:
        gone = "http://127.0.0.1:9/v1"
        words = ("route", "--a", one.url, "--b", gone, "--db", tmp_path / "x.db", "--port", 0)
        with serving(*words, "--share", 0.999999, log=tmp_path / "log") as server:
            body = {"model": "ab", "messages": [{"role": "user", "content": "Hi"}]}
            answer = CLIENT.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the model gave no answer"
    assert result(tmp_path / "x.db")["sides"]["b"]["errors"] == 1


def test_assignment_follows_the_share_and_is_checked(tmp_path):
    router = Traffic.open(tmp_path / "x.db", ("a", "b"), 0.2)
    sides = [router.assign(f"user {number}").side for number in range(4000)]
    assert 0.17 < sides.count("b") / 4000 < 0.23
    again = Traffic.open(tmp_path / "x.db", ("a", "b"), 0.2)
    assert [again.assign(f"user {number}").side for number in range(4000)] == sides
    assert len({router.assign(None) for _ in range(10)}) == 10
    with database.opened(tmp_path / "x.db") as db, database.transaction(db):
        for number in range(60):  # a router that sends everyone to B
            row = (str(number), str(number), "b", 0.0)
            db.execute("INSERT INTO requests (id, user, side, time) VALUES (?, ?, ?, ?)", row)
    assert result(tmp_path / "x.db")["split"]["p_value"] < 1e-6
