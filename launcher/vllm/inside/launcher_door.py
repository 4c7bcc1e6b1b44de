"""Inside vLLM's process, which imports nothing else of the launcher: who knows the token may ask.

vLLM's own key guards the paths below /v1 alone, and those that load weights are not among them.
Who is to show the token can see first that it is known here: `/launcher-proof/NONCE` says what only
who knows it can say.
"""

import hmac
import os
from typing import Any

PROOF = "/launcher-proof/"


def proof_of(token: str, nonce: str) -> bytes:
    """What is said to a nonce by who knows the token."""
    return hmac.digest(token.encode(), b"proof " + nonce.encode(), "sha256").hex().encode()


class Door:
    """ASGI middleware: 401 without `Authorization: Bearer LAUNCHER_VLLM_TOKEN`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.token = os.environ["LAUNCHER_VLLM_TOKEN"]
        self.expected = b"Bearer " + self.token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request in, or refuse it."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, self.expected):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            _, is_asked, nonce = scope["path"].partition(PROOF)
            status, body = (200, proof_of(self.token, nonce)) if is_asked else (401, b"")
            length = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": length})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})
