"""/v1/webhook_endpoints: who is told of what happens."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Any

from anyio import WouldBlock
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from launcher.serve.db.database import comparable, new_id
from launcher.serve.db.tables import Delivery, WebhookEndpoint, now
from launcher.serve.files.intake import Working
from launcher.serve.http import paging, retries, wire
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.routes.jobs import After, Limit
from launcher.serve.service import Service
from launcher.serve.webhooks import endpoints, outbox, sender, wire_webhooks
from launcher.serve.webhooks.outbox import Letter
from launcher.serve.webhooks.sender import SendError

router = APIRouter(prefix="/v1", tags=["webhooks"])
#: Seconds after which a client with a test under way may ask for another.
_RETRY_S = 2


@router.get("/webhook_event_types")
async def event_types(caller: Asking) -> wire_webhooks.EventTypes:
    """What an endpoint can be told of."""
    return wire_webhooks.EventTypes(data=list(endpoints.EVENTS))


@router.post("/webhook_endpoints")
def create(
    asked: wire_webhooks.NewEndpoint,
    caller: Asking,
    service: Served,
    key: retries.IdempotencyKey = None,
) -> wire_webhooks.EndpointWithSecret:
    """A new endpoint, and its secret, which is shown only here."""
    wanted = "webhook endpoint", asked.model_dump_json()
    with service.database.begin() as session:
        known = retries.known(session, caller.project_id, key, *wanted)
        if known is not None:
            found = endpoints.find(session, caller.project_id, known)
            return wire_webhooks.EndpointWithSecret.of(found)
        made = endpoints.create(
            *(session, service.site, caller.project_id),
            *(asked.name, asked.url, asked.event_types),
        )
        retries.note(session, caller.project_id, key, made.id, *wanted)
        return wire_webhooks.EndpointWithSecret.of(made)


@router.get("/webhook_endpoints", response_model=wire.Bounded[wire_webhooks.EndpointView])
def list_endpoints(
    caller: Asking, service: Served, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """The project's endpoints, newest first."""
    with service.database.read() as session:
        own = [WebhookEndpoint.project_id == caller.project_id]
        number = None
        if after is not None:
            named = WebhookEndpoint.id == comparable(after)
            last = session.scalar(select(WebhookEndpoint).where(*own, named))
            if last is None:
                raise paging.unknown_cursor(after)
            number = last.number
        found, more = paging.page(
            session, WebhookEndpoint, own, WebhookEndpoint.number, after=number, limit=limit
        )
    views = (wire_webhooks.EndpointView.of(one).model_dump() for one in found)
    return paging.as_list(views, more)


@router.get("/webhook_endpoints/{endpoint_id}")
def retrieve(endpoint_id: str, caller: Asking, service: Served) -> wire_webhooks.EndpointView:
    """One endpoint."""
    with service.database.read() as session:
        return wire_webhooks.EndpointView.of(
            endpoints.find(session, caller.project_id, endpoint_id)
        )


@router.get(
    "/webhook_endpoints/{endpoint_id}/deliveries",
    response_model=wire.Bounded[wire_webhooks.DeliveryView],
)
def list_deliveries(
    endpoint_id: str, caller: Asking, service: Served, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What was to be sent to the endpoint, newest first; `after` is the id of an event."""
    with service.database.read() as session:
        found = endpoints.find(session, caller.project_id, endpoint_id)
        own = [Delivery.endpoint_id == found.id]
        number = None
        if after is not None:
            named = Delivery.event == comparable(after)
            number = session.scalar(select(Delivery.number).where(*own, named))
            if number is None:
                raise paging.unknown_cursor(after)
        rows, more = paging.page(session, Delivery, own, Delivery.number, after=number, limit=limit)
        views = [wire_webhooks.DeliveryView.of(one).model_dump() for one in rows]
    return paging.as_list(views, more)


@router.post("/webhook_endpoints/{endpoint_id}")
def update(
    endpoint_id: str, asked: wire_webhooks.ChangedEndpoint, caller: Asking, service: Served
) -> wire_webhooks.EndpointView:
    """Change what is given; what was to be sent goes to the new address."""
    with service.database.begin() as session:
        found = endpoints.find(session, caller.project_id, endpoint_id, for_update=True)
        if asked.url is not None:
            endpoints.require_allowed(service.site, asked.url)
        events = asked.event_types and endpoints.known_events(asked.event_types, "event_types")
        before = found.name, found.url, found.events
        found.name, found.url = asked.name or found.name, asked.url or found.url
        found.events = events or found.events
        if before != (found.name, found.url, found.events):
            found.updated_at = now()
        return wire_webhooks.EndpointView.of(found)


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete(endpoint_id: str, caller: Asking, service: Served) -> wire.Deleted:
    """Delete the endpoint, and what was to be sent to it."""
    with service.database.begin() as session:
        found = endpoints.find(session, caller.project_id, endpoint_id, for_update=True)
        endpoints.remove(session, found)
        return wire.Deleted(id=found.id, object="webhook_endpoint.deleted")


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    endpoint_id: str, caller: Asking, service: Served, asked: wire_webhooks.Rotation | None = None
) -> wire_webhooks.EndpointWithSecret:
    """A new secret, which is shown only here."""
    keeps = asked is not None and asked.keep_old_secret_active_for_24_hours
    with service.database.begin() as session:
        found = endpoints.find(session, caller.project_id, endpoint_id, for_update=True)
        endpoints.rotate(found, keeps_old=keeps)
        return wire_webhooks.EndpointWithSecret.of(found)


@router.post("/webhook_endpoints/{endpoint_id}/test")
async def test(
    endpoint_id: str,
    asked: wire_webhooks.Test,
    caller: Asking,
    service: Served,
    workers: Working,
) -> wire_webhooks.TestResult:
    """Send a sample of an event now, once; what the endpoint answers is no fault of the request."""
    [kind] = endpoints.known_events([asked.event_type], "event_type")
    letter = await run_in_threadpool(_sample, service, caller, endpoint_id, kind)
    testing = workers.testing(caller.project_id)
    try:
        testing.acquire_on_behalf_of_nowait(letter.event)
    except WouldBlock as error:
        found = "Rate limit reached: tests of this project's endpoints are under way."
        again = {"Retry-After": str(_RETRY_S)}
        raise ApiError(429, found, code="rate_limit_exceeded", headers=again) from error
    try:
        async with sender.client() as connected:
            status = await sender.send(connected, letter, service.site.webhooks.timeout_s)
    except SendError as error:
        raise ApiError(400, f"The endpoint did not answer: {error}", param="url") from error
    finally:
        testing.release_on_behalf_of(letter.event)
    return wire_webhooks.TestResult(
        webhook_endpoint_id=endpoint_id, event_type=kind, status_code=status
    )


def _sample(service: Service, caller: Caller, endpoint_id: str, kind: str) -> Letter:
    with service.database.read() as session:
        found = endpoints.find(session, caller.project_id, endpoint_id)
        endpoints.require_allowed(service.site, found.url)
        event = new_id("evt_")
        named = {"batch": "batch_test", "eval": "evalrun_test"}.get(kind.partition(".")[0])
        named = named or "ftjob-test"
        body = outbox.message(event, kind, {"id": named})
        secrets = endpoints.secrets_of(found)
        return Letter(0, 1, found.project_id, found.url, event, body, secrets)
