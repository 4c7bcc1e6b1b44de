"""/v1/responses."""

# Annotations are not postponed here: FastAPI reads them.
from fastapi import APIRouter, Request, Response

from launcher.serve.chat.asking import answered
from launcher.serve.chat.response_object import ResponseAnswer
from launcher.serve.chat.wire_responses import ResponseRequest
from launcher.serve.http.access import Asking, Served

#: The pool of models is that of `launcher.serve.routes.chat`.
router = APIRouter(prefix="/v1", tags=["chat"])


@router.post("/responses")
async def create_response(
    asked: ResponseRequest, request: Request, caller: Asking, service: Served
) -> Response:
    """Answer, whole or as a stream of server-sent events; nothing is stored."""
    wanted = asked.request(service.site.chat.max_tokens)
    answer = ResponseAnswer(asked)
    return await answered(
        request, caller, service, asked.model, wanted, answer, stream=bool(asked.stream)
    )
