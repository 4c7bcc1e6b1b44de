"""What the official clients for Azure send otherwise: `openai.AzureOpenAI` works as it is.

Its addresses begin with /openai instead of /v1, those of models name the deployment, which is the
model here, the key is in a header of its own, and each request has an `api-version`, which changes
nothing.
"""

from __future__ import annotations

import re

from starlette.types import Scope

#: Parameter of a query that any request may have.
VERSION = "api-version"
#: Header of the key.
KEY = "api-key"
_PREFIX = re.compile(r"/openai(?:/v1)?(?=/)")
_DEPLOYMENT = re.compile(r"/v1/deployments/([^/]+)(?=/(?:chat/)?completions$)")


def translate(scope: Scope) -> None:
    """Make a request's address the one that OpenAI's clients send; the deployment that it names is
    in the request's state then."""
    path = _PREFIX.sub("/v1", scope["path"], count=1) if scope["path"].startswith("/o") else ""
    path = path or scope["path"]
    if named := _DEPLOYMENT.match(path):
        scope["state"]["deployment"] = named[1]
        path = "/v1" + path[named.end() :]
    scope["path"] = path
