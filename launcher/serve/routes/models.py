"""/v1/models."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor

from launcher.serve.chat import models
from launcher.serve.chat.pool import ModelPool, ModelSource
from launcher.serve.db.tables import now
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

router = APIRouter(prefix="/v1/models", tags=["models"])


class _Rest(PathConvertor):
    """The rest of a path, line breaks and all."""

    regex = "(?s:.*)"


register_url_convertor("rest", _Rest())


@router.get("")
def list_models(caller: Asking, service: Served) -> dict[str, Any]:
    """Base models, fine-tuned models and their checkpoints."""
    with service.database.read() as session:
        found = models.listed(session, service.site, caller.project_id)
    return {"object": "list", "data": found}


# Names have colons, and whoever has written them encoded has had them decoded by now.
@router.get("/{model:rest}")
def retrieve_model(model: str, caller: Asking, service: Served) -> dict[str, Any]:
    """One model."""
    with service.database.read() as session:
        return models.retrieved(session, service.site, caller.project_id, model)


@router.delete("/{model:rest}")
async def delete_model(
    model: str, request: Request, caller: Asking, service: Served
) -> dict[str, Any]:
    """Delete a fine-tuned model: its name is of no use from now on. The run folder stays."""
    if model in service.site.models:
        raise ApiError(403, f"The model '{model}' is the site's and cannot be deleted.")
    source = await run_in_threadpool(_delete, service, caller, model)
    pool: ModelPool = request.state.pool
    pool.forget(source)
    return {"id": model, "object": "model", "deleted": True}


def _delete(service: Service, caller: Caller, name: str) -> ModelSource:
    with service.database.begin() as session:
        model = models.made_by_job(session, caller.project_id, name)
        if model.project_id != caller.project_id:
            found = f"The model '{name}' is another project's and cannot be deleted here."
            raise ApiError(403, found)
        if users := models.in_use(session, [name]).get(name):
            found = f"The model '{name}' is what {', '.join(users)} starts from:"
            found += " that has to end first."
            raise ApiError(409, found, param="model", headers={"x-should-retry": "false"})
        model.deleted_at = now()
        return models.source_of(model)
