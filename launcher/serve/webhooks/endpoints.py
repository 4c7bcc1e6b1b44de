"""Endpoints of a project: what they are told, under which address, and by which secret signed."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database, comparable, new_id
from launcher.serve.db.tables import Delivery, WebhookEndpoint, now
from launcher.serve.http.failure import ApiError
from launcher.serve.site import Site, origin_of

#: What an endpoint can be told of.
EVENTS = (
    *("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"),
    *("batch.completed", "batch.failed", "batch.cancelled", "batch.expired"),
    *("eval.run.succeeded", "eval.run.failed", "eval.run.canceled"),
)
#: Of one project.
MOST = 20
#: How long the secret before a new one goes on signing, on wish.
OVERLAP_S = 24 * 3600
#: Bytes of a secret.
_BYTES = 32
#: Secrets before the last one that sign at a time.
_MOST_SECRETS = 8


def create(
    session: Session, site: Site, project_id: str, name: str, url: str, events: Sequence[str]
) -> WebhookEndpoint:
    """A new endpoint; `ApiError` for an address that the site does not allow."""
    require_allowed(site, url)
    lock(session, project_id)
    own = select(func.count()).where(WebhookEndpoint.project_id == project_id)
    if (session.scalar(own) or 0) >= MOST:
        raise ApiError(400, f"A project has at most {MOST} webhook endpoints: delete one first.")
    made = WebhookEndpoint(
        id=new_id("whep_"),
        project_id=project_id,
        name=name,
        url=url,
        events=known_events(events, "event_types"),
        secret=_secret(),
    )
    session.add(made)
    session.flush()
    return made


def find(
    session: Session, project_id: str, endpoint_id: str, *, for_update: bool = False
) -> WebhookEndpoint:
    """One of the project's; 404 in the envelope without it."""
    wanted = select(WebhookEndpoint).where(
        WebhookEndpoint.id == comparable(endpoint_id), WebhookEndpoint.project_id == project_id
    )
    found = session.scalar(wanted.with_for_update() if for_update else wanted)
    if found is None:
        raise ApiError(404, f"No such webhook endpoint: {endpoint_id}", param="id")
    return found


def rotate(endpoint: WebhookEndpoint, *, keeps_old: bool) -> None:
    """Give the endpoint a new secret; on wish the old one goes on signing for a day."""
    old = [endpoint.secret, time.time() + OVERLAP_S]
    # All of them: a request that is sent again because its answer was lost makes one more.
    endpoint.old_secrets = [*_signing(endpoint), old] if keeps_old else []
    endpoint.secret, endpoint.updated_at = _secret(), now()


def remove(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete it, and what was to be sent to it."""
    lock(session, endpoint.project_id)
    session.execute(delete(Delivery).where(Delivery.endpoint_id == endpoint.id))
    session.delete(endpoint)


def lock(session: Session, project_id: str) -> None:
    """Let nobody else make or delete endpoints of the project until the transaction ends."""
    Database.lock(session, f"webhooks {project_id}")


def known_events(events: Sequence[str], param: str) -> list[str]:
    """The events without repetitions; `ApiError` 400 for one that this service never sends."""
    for event in events:
        if event not in EVENTS:
            found = f"This service sends no event '{event[:100]}'; it sends {', '.join(EVENTS)}."
            raise ApiError(400, found, param=param)
    return list(dict.fromkeys(events))


def require_allowed(site: Site, url: str) -> None:
    """`ApiError` 400 for an address that the site has not allowed."""
    if not is_allowed(site, url):
        shown = origin_of(url) or url[:100]
        raise ApiError(
            400,
            f"This service sends nothing to {shown}: its operator allows addresses by"
            " `webhooks.allow` in serve.yaml.",
            param="url",
        )


def is_allowed(site: Site, url: str) -> bool:
    """Whether the site allows the address: its scheme, host and port stand in `webhooks.allow`."""
    origin = origin_of(url)
    return origin is not None and origin in {origin_of(one) for one in site.webhooks.allow}


def secrets_of(endpoint: WebhookEndpoint) -> list[str]:
    """Those that sign what is sent to it now."""
    return [endpoint.secret, *(secret for secret, _ in _signing(endpoint))]


def _signing(endpoint: WebhookEndpoint) -> list[list[Any]]:
    return [one for one in endpoint.old_secrets if one[1] > time.time()][-_MOST_SECRETS:]


def _secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
