"""/v1/fine_tuning/alpha/graders: a grader is tried before a job is made of it."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request

from launcher.serve.grading.wire_graders import (
    RunRequest,
    RunView,
    ValidateRequest,
    ValidateView,
    run_view,
)
from launcher.serve.grading.workers import Grading
from launcher.serve.http.access import Asking


@contextlib.asynccontextmanager
async def _with_workers(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    grading = Grading(app.state.service.site)
    try:
        app.state.grading = grading  # for what the service grades by itself
        yield {"grading": grading}
    finally:
        grading.close()


async def grading_of(request: Request) -> Grading:
    """The processes of the app."""
    grading = request.state.grading
    assert isinstance(grading, Grading)
    return grading


Graders = Annotated[Grading, Depends(grading_of)]
router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", lifespan=_with_workers)


@router.post("/run", response_model=RunView)
async def run(asked: RunRequest, caller: Asking, graders: Graders) -> dict[str, Any]:
    """The reward of one answer."""
    found = await graders.run(caller.project_id, asked.grader, asked.item or {}, asked.model_sample)
    return run_view(asked.grader, found)


@router.post("/validate", response_model=ValidateView)
async def validate(asked: ValidateRequest, caller: Asking, graders: Graders) -> dict[str, Any]:
    """The grader as it was sent, if a job can have it."""
    await graders.require_sound(caller.project_id, asked.grader, "grader")
    return {"grader": asked.grader}
