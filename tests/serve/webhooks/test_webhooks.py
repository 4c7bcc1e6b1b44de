"""Webhooks: what happens is noted with it and sent, signed, again and again, to allowed addresses
alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from sqlalchemy import event, insert, select

from launcher.serve.db.tables import Delivery, Project, WebhookEndpoint
from launcher.serve.site import Site, WebhookSettings
from launcher.serve.webhooks import endpoints, outbox
from launcher.serve.webhooks.sender import Sender, signed
from serve.webhooks.receiver import receiving
from support.served import wait_until

ENDED = "fine_tuning.job.succeeded"
PATH = "/v1/webhook_endpoints"


@pytest.fixture
def receiver():
    with receiving() as found:
        yield found


@pytest.fixture
def allowed(service, receiver):
    """The address of the receiver, to which the service may send."""
    service.site.webhooks.allow = [receiver.url]
    service.site.webhooks.timeout_s = 1.0
    return f"{receiver.url}/told?a=b"


@pytest.fixture
def sender(service):
    """Sends what is due meanwhile."""
    found = Sender(service)
    found.start()
    yield found
    found.stop()
    found.join(20)
    assert not found.is_alive()


@pytest.fixture
def made(client, allowed):
    """An endpoint of the client's project."""
    asked = {"name": "mine", "url": allowed, "event_types": [ENDED]}
    answer = client.post(PATH, json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def happens(service, kind: str = ENDED, project: str = "ours", job: str = "ftjob-1") -> None:
    with service.database.begin() as session:
        own = session.scalars(select(Project).where(Project.name == project)).one()
        outbox.note(session, own.id, kind, {"id": job})


def deliveries(service) -> list[Delivery]:
    with service.database.read() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.number)))


def make_due(service) -> None:
    with service.database.begin() as session:
        for one in session.scalars(select(Delivery)):
            one.due_at = 0.0


def sent(service, until: str, tries: int = 1) -> Delivery:
    """The only delivery once it has this state, after so many tries."""
    for number in range(1, tries + 1):

        def tried(number: int = number) -> bool:
            [found] = deliveries(service)
            return found.leased_until == 0.0 and found.attempts == number

        wait_until(tried, "a try")
        if number < tries:
            make_due(service)
    [found] = deliveries(service)
    assert (found.state, found.attempts) == (until, tries)
    return found


def test_what_has_happened_is_sent_and_verified_by_clients(service, client, made, receiver, sender):
    happens(service)
    found = sent(service, outbox.SENT)
    [request] = receiver.requests
    assert request.path == "/told?a=b"
    assert request.headers["webhook-id"] == found.event
    told = OpenAI(api_key="x", webhook_secret=made["signing_secret"]).webhooks.unwrap(
        request.body, request.headers
    )
    assert (told.id, told.type, told.data.id) == (found.event, ENDED, "ftjob-1")
    assert abs(told.created_at - time.time()) < 60
    assert outbox.claim(service.database, 8, 60) == []
    assert len(receiver.requests) == 1


def test_what_was_to_be_sent_is_listed(service, client, made, stranger, receiver, sender):
    receiver.status = lambda number: (500, 204)[number]
    path = f"{PATH}/{made['id']}/deliveries"
    assert client.get(path).json()["data"] == []
    happens(service)
    sent(service, outbox.PENDING)
    [told] = client.get(path).json()["data"]
    assert (told["state"], told["attempts"], told["last_answer"]) == ("pending", 1, "HTTP 500")
    assert told["next_attempt_at"] == pytest.approx(time.time() + 5, abs=5)
    assert (told["event_type"], told["data"]) == (ENDED, {"id": "ftjob-1"})
    make_due(service)
    wait_until(lambda: client.get(path).json()["data"][0]["state"] == "sent", "its end")
    [told] = client.get(path).json()["data"]
    assert (told["attempts"], told["next_attempt_at"]) == (2, None)
    assert told["ended_at"] >= told["created_at"]
    happens(service, job="ftjob-2")
    page = client.get(path, params={"limit": 1}).json()
    assert (page["data"][0]["data"], page["has_more"]) == ({"id": "ftjob-2"}, True)
    older = client.get(path, params={"after": page["last_id"]}).json()
    assert [one["id"] for one in older["data"]] == [told["id"]]
    assert client.get(path, params={"after": "evt_none"}).status_code == 400
    assert client.get(path, headers=stranger).status_code == 404


def test_only_those_are_told_who_want_to_know(service, client, made, stranger, receiver):
    happens(service, "fine_tuning.job.failed")
    client.post(PATH, json={}, headers=stranger)  # makes the project
    happens(service, ENDED, "theirs")
    assert deliveries(service) == []


def test_what_is_not_taken_is_sent_again(service, made, receiver, sender):
    receiver.status = lambda number: (500, 302, -3, 204)[number]
    happens(service)
    before = time.time()
    found = sent(service, outbox.SENT, tries=4)
    assert found.answer == "HTTP 204"
    assert found.due_at > before + 8 * 5 - 1  # the pauses double: 5, 10, 20, 40 s
    assert {one.headers["webhook-id"] for one in receiver.requests} == {found.event}
    assert {one.body for one in receiver.requests} == {found.body}
    assert [one.path for one in receiver.requests] == ["/told?a=b"] * 4  # none was led elsewhere


def test_it_is_given_up_after_a_day(service, made, receiver, sender):
    receiver.status = lambda number: 500
    happens(service)
    sent(service, outbox.PENDING)
    with service.database.begin() as session:
        session.scalars(select(Delivery)).one().created_at -= 86_400
    make_due(service)
    wait_until(lambda: deliveries(service)[0].state == outbox.GIVEN_UP, "its end")
    make_due(service)
    assert outbox.claim(service.database, 8, 60) == []
    assert len(receiver.requests) == 2


def test_nobody_there_is_told_of(service, client, allowed, sender):
    service.site.webhooks.allow = ["http://127.0.0.1:9"]
    asked = {"name": "away", "url": "http://127.0.0.1:9/", "event_types": [ENDED]}
    assert client.post(PATH, json=asked).status_code == 200
    happens(service)
    assert "connect" in sent(service, outbox.PENDING).answer.lower()


def test_a_lease_that_is_over_is_taken_by_another(service, made, receiver):
    happens(service)
    [taken] = outbox.claim(service.database, 5, 60)
    make_due(service)  # whoever had it has died
    with service.database.begin() as session:
        session.scalars(select(Delivery)).one().leased_until = 0.0
    [again] = outbox.claim(service.database, 5, 60)
    assert (taken.event, taken.body) == (again.event, again.body)
    assert outbox.claim(service.database, 5, 60) == []


def test_slow_endpoints_of_one_project_hold_up_no_other(service, client, made, stranger, allowed):
    asked = {"name": "theirs", "url": allowed, "event_types": [ENDED]}
    assert client.post(PATH, json=asked, headers=stranger).status_code == 200
    for number in range(20):
        happens(service, job=f"ftjob-{number}")
    happens(service, project="theirs", job="ftjob-theirs")
    found = outbox.claim(service.database, 8, 60)
    assert sorted(json.loads(one.body)["data"]["id"] for one in found) == [
        "ftjob-0",
        "ftjob-1",
        "ftjob-theirs",
    ]


def test_an_address_is_allowed_again_before_it_is_sent_to(service, made, receiver, sender):
    service.site.webhooks.allow = []
    happens(service)
    assert "does not allow" in sent(service, outbox.PENDING).answer
    assert receiver.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "https://127.0.0.1/",
        "http://localhost/",
        "file:///etc/passwd",
        "http://[::1]/",
        "http://user:word@{host}/",
        "http://{host}.evil.example/",
        "http://{host}@evil.example/",
        "http://evil.example#@{host}/",
        "http://evil.example\\@{host}/",
        "http://{host}:99999/",
        "//{host}/",
        "http:///",
        "nonsense",
    ],
)
def test_other_addresses_are_refused(client, allowed, receiver, url):
    host = receiver.url.removeprefix("http://")
    asked = {"name": "x", "url": url.replace("{host}", host), "event_types": [ENDED]}
    answer = client.post(PATH, json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url"), answer.text


@given(st.text())
def test_any_text_is_an_address_or_none(text):
    site = Site(webhooks=WebhookSettings(allow=["https://hooks.example.com"]))
    if endpoints.is_allowed(site, text):
        assert text.lower().startswith("https://hooks.example.com")


def test_endpoints_are_a_projects_own(client, made, stranger):
    path = f"{PATH}/{made['id']}"
    assert client.get(path).json() == {k: v for k, v in made.items() if k != "signing_secret"}
    for method, where in (("GET", ""), ("DELETE", ""), ("POST", "/rotate_secret")):
        assert client.request(method, path + where, headers=stranger).status_code == 404
    assert client.get(PATH, headers=stranger).json()["data"] == []


def test_endpoints_can_be_changed_and_deleted(service, client, made, allowed):
    path = f"{PATH}/{made['id']}"
    changed = client.post(path, json={"name": "other", "event_types": ["fine_tuning.job.failed"]})
    assert changed.json()["name"] == "other"
    assert changed.json()["url"] == made["url"]
    assert client.post(path, json={"url": "http://127.0.0.1:1/"}).status_code == 400
    unknown = client.post(path, json={"event_types": ["batch.begun"]}).json()["error"]
    assert "it sends fine_tuning.job.succeeded" in unknown["message"]
    happens(service, "fine_tuning.job.failed")
    assert client.delete(path).json()["deleted"] is True
    assert client.get(path).status_code == 404
    assert deliveries(service) == []


def test_old_secrets_sign_for_a_day_on_wish(service, client, made, receiver, sender):
    path = f"{PATH}/{made['id']}/rotate_secret"
    keeping = {"keep_old_secret_active_for_24_hours": True}
    # The second is the first one sent again, as clients do whose answer was lost.
    new = [client.post(path, json=keeping).json() for _ in range(2)]
    happens(service)
    sent(service, outbox.SENT)
    [request] = receiver.requests
    for own in (made, *new):
        OpenAI(api_key="x").webhooks.verify_signature(
            request.body, request.headers, secret=own["signing_secret"]
        )
    last = client.post(path).json()
    with service.database.read() as session:
        found = session.scalars(select(WebhookEndpoint)).one()
        assert endpoints.secrets_of(found) == [last["signing_secret"]]


def test_a_request_that_is_sent_again_makes_one_endpoint(client, allowed):
    asked = {"name": "mine", "url": allowed, "event_types": [ENDED]}
    again = {"Idempotency-Key": "k"}
    made = [client.post(PATH, json=asked, headers=again).json() for _ in range(2)]
    assert made[0] == made[1]
    assert len(client.get(PATH).json()["data"]) == 1
    other = client.post(PATH, json={**asked, "name": "other"}, headers=again)
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_a_late_answer_changes_nothing(service, made):
    happens(service)
    [first] = outbox.claim(service.database, 8, 0.0)
    [second] = outbox.claim(service.database, 8, 60.0)

    def settle(letter: outbox.Letter, *, is_sent: bool) -> str:
        return outbox.settle(service.database, letter, "x", is_sent=is_sent, tries_s=0.0)

    assert settle(first, is_sent=False) == outbox.PENDING
    assert settle(second, is_sent=True) == outbox.SENT
    assert settle(first, is_sent=False) == outbox.SENT


def test_a_backlog_of_one_project_holds_nobody_up(service, client, made, stranger, allowed):
    asked = {"name": "theirs", "url": allowed, "event_types": [ENDED]}
    client.post(PATH, json=asked, headers=stranger)
    happens(service)
    row = {c.name: getattr(deliveries(service)[0], c.name) for c in Delivery.__table__.columns}
    del row["number"]
    with service.database.begin() as session:
        session.execute(insert(Delivery), [row] * 50_000)
    happens(service, project="theirs")
    claimed = []
    statements = 0

    def count(*args: object) -> None:
        nonlocal statements
        statements += 1

    event.listen(service.database.engine, "before_cursor_execute", count)
    claimed = outbox.claim(service.database, 8, 60)
    assert sorted(Counter(one.project_id for one in claimed).values()) == [1, 2]
    assert statements < 20


def test_a_project_tests_two_at_a_time(client, made, receiver, stranger, allowed):
    receiver.status = lambda number: -3
    path = f"{PATH}/{made['id']}/test"
    with ThreadPoolExecutor(6) as pool:
        codes = pool.map(lambda _: client.post(path, json={"event_type": ENDED}), range(6))
    assert Counter(one.status_code for one in codes) == {400: 2, 429: 4}


def test_a_test_is_sent_at_once(client, made, receiver):
    receiver.status = lambda number: (418, -3)[number]
    path = f"{PATH}/{made['id']}/test"
    found = client.post(path, json={"event_type": ENDED}).json()
    assert (found["status_code"], found["success"]) == (418, True)
    answer = client.post(path, json={"event_type": ENDED})
    assert answer.status_code == 400
    assert "no answer within 1 s" in answer.json()["error"]["message"]


def test_a_project_has_few_endpoints(client, made, allowed):
    asked = {"name": "x", "url": allowed, "event_types": [ENDED]}
    codes = [client.post(PATH, json=asked).status_code for _ in range(endpoints.MOST)]
    assert codes == [200] * (endpoints.MOST - 1) + [400]


def test_signatures_are_those_of_the_standard():
    """The example of the specification's own test vector."""
    found = signed(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        '{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_ended_long_ago_is_forgotten(service, made, sender):
    happens(service)
    sent(service, outbox.SENT)
    with service.database.begin() as session:
        outbox.forget(session)
        assert session.scalars(select(Delivery)).one()
        session.scalars(select(Delivery)).one().ended_at -= 31 * 86_400
    with service.database.begin() as session:
        outbox.forget(session)
        assert session.scalar(select(Delivery)) is None
