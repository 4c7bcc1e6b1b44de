"""Endpoints of webhooks as they go over the wire, as the official clients' types say."""

# Annotations are not postponed here: pydantic reads them.
import json
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from launcher.serve.db.tables import Delivery, WebhookEndpoint
from launcher.serve.http.wire import RequestBody
from launcher.serve.webhooks.endpoints import EVENTS

Name = Annotated[str, Field(min_length=1, max_length=256)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
_EVENT = Field(max_length=100, json_schema_extra={"enum": list(EVENTS)})
Event = Annotated[str, _EVENT]
Events = Annotated[list[Event], Field(min_length=1, max_length=100)]


class NewEndpoint(RequestBody):
    """Body of POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: Events


class ChangedEndpoint(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}: what is not there stays."""

    name: Name | None = None
    url: Url | None = None
    event_types: Events | None = None


class Rotation(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: bool = False


class Test(RequestBody):
    """Body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: Event


class EndpointView(BaseModel):
    """An endpoint of the project."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "EndpointView":
        """Without its secret."""
        return cls(**_members(row))


class EndpointWithSecret(EndpointView):
    """The same just after it was made, or its secret."""

    signing_secret: str

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "EndpointWithSecret":
        """With its secret."""
        return cls(**_members(row), signing_secret=row.secret)


class TestResult(BaseModel):
    """What an endpoint has answered to a test."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class DeliveryView(BaseModel):
    """An event for an endpoint, and how far it has come."""

    id: str
    """Of the event: `webhook-id` of each try."""
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: int
    event_type: str
    data: dict[str, Any]
    state: Annotated[str, Field(json_schema_extra={"enum": ["pending", "sent", "given_up"]})]
    attempts: int
    """Tries so far, one under way too."""
    last_answer: str | None
    """How the last try ended."""
    next_attempt_at: int | None
    """Unix seconds; null while it is tried, and after the last try."""
    ended_at: int | None

    @classmethod
    def of(cls, row: Delivery) -> "DeliveryView":
        """As it stands now."""
        waits = row.state == "pending" and row.leased_until <= time.time()
        return cls(
            id=row.event,
            created_at=row.created_at,
            event_type=row.type,
            data=json.loads(row.body)["data"],
            state=row.state,
            attempts=row.attempts,
            last_answer=row.answer,
            next_attempt_at=max(int(row.due_at), row.created_at) if waits else None,
            ended_at=row.ended_at,
        )


class EventTypes(BaseModel):
    """What endpoints can be told of."""

    object: Literal["list"] = "list"
    data: list[str]


def _members(row: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "name": row.name,
        "url": row.url,
        "event_types": row.events,
        "signing_secret_hint": f"{row.secret[:8]}...{row.secret[-4:]}",
    }
