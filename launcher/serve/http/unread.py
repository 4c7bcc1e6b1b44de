"""What stands in a request that its route does not read: it is refused, not dropped."""

# Annotations are not postponed here: FastAPI reads them.
import json
import re
from collections import Counter
from typing import get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from launcher.core.errors import did_you_mean
from launcher.serve.http import azure
from launcher.serve.http.failure import ApiError, unknown_member

#: Routes that read their query or body by themselves: FastAPI does not know its names.
_METADATA = re.compile(r"metadata(\[.*\])?", re.DOTALL)
_FILTERED = "/v1/fine_tuning/jobs"


async def nothing_unread(request: Request) -> None:
    """`ApiError` 400 for a parameter of the query, or a body, that the route does not know."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
        return
    known = _query_of(route.dependant)
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in given.items():
        if route.path == _FILTERED and request.method == "GET" and _METADATA.fullmatch(name):
            continue
        if name == azure.VERSION:
            continue
        if name not in known:
            names = [*known, *(["metadata"] if route.path == _FILTERED else [])]
            near = did_you_mean(name, names) if names else "this request takes none"
            raise unknown_member(name, near)
        if times > 1 and not known[name]:
            raise ApiError(400, f"'{name}' is given {times} times", param=name)
    # A form is read by its route.
    if request.method == "POST" and route.body_field is None and not route.openapi_extra:
        _require_empty(await request.body())


def _query_of(dependant: Dependant) -> dict[str, bool]:
    """Names that a route takes, and whether each may be given more than once."""
    found = {
        parameter.alias: get_origin(parameter.field_info.annotation) is list
        for parameter in dependant.query_params
    }
    for one in dependant.dependencies:
        found |= _query_of(one)
    return found


def _require_empty(body: bytes) -> None:
    if not body.strip():
        return
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if isinstance(said, dict):
        for name in said:
            raise unknown_member(name, "this request takes none")
    elif said is not None:
        raise ApiError(400, "This request takes no body.")
