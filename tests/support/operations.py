"""OpenAI's published operations compared with those of our own document, and the table of them.

`PYTHONPATH=.:tests python -m support.operations` writes the table of docs/operations.md anew.
`tests/serve/openai_operations.json` holds what was read from OpenAI's document: methods, paths,
names of query parameters and of members of request bodies.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.serve.chat.wire_chat import ChatRequest, CompletionRequest
from launcher.serve.chat.wire_responses import ResponseRequest

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "tests" / "serve" / "openai_operations.json"
PAGE = ROOT / "docs" / "operations.md"
HEAD = "| operation | here |\n|---|---|\n"

#: Why OpenAI's operation is not here; of a path, or of all below it.
ABSENT = {
    "get /chat/completions": "answers are not stored",
    "get /chat/completions/{}": "answers are not stored",
    "post /chat/completions/{}": "answers are not stored",
    "delete /chat/completions/{}": "answers are not stored",
    "get /chat/completions/{}/messages": "answers are not stored",
    "get /responses/{}": "responses are not stored",
    "delete /responses/{}": "responses are not stored",
    "get /responses/{}/input_items": "responses are not stored",
    "post /responses/{}/cancel": "there are no responses in the background",
    "post /responses/input_tokens": "the `usage` of an answer counts its tokens",
    "post /responses/compact": "it makes an item that only OpenAI can read",
}
#: Why an operation is here that OpenAI's document lacks.
OURS = {
    "post /evals/{}/runs/{}/cancel": "older clients cancel so",
    "get /webhook_endpoints/{}/deliveries": "what was sent, and what has come of it",
    **dict.fromkeys(
        (
            "get /webhook_event_types",
            "get /webhook_endpoints",
            "post /webhook_endpoints",
            "get /webhook_endpoints/{}",
            "post /webhook_endpoints/{}",
            "delete /webhook_endpoints/{}",
            "post /webhook_endpoints/{}/rotate_secret",
            "post /webhook_endpoints/{}/test",
        ),
        "of the official clients, newer than the document",
    ),
}
_NEWER = "of newer clients"
#: Why we know a member that OpenAI's document lacks.
MORE = {
    "post /chat/completions": dict.fromkeys(("moderation", "prompt_cache_options"), _NEWER),
    "post /responses": dict.fromkeys(
        ("access_programs", "background_options", "image", "moderation", "prompt_cache_options"),
        _NEWER,
    ),
}
#: Why a member, or some values of it, is refused.
REFUSED = {
    "access_programs": "OpenAI's accounts",
    "audio": "text only",
    "background": "responses are not stored",
    "background_options": "responses are not stored",
    "context_management": "nothing is left out of a conversation",
    "conversation": "conversations are not stored",
    "echo": "completions are answers alone",
    "image": "text only",
    "logprobs": "chats have them",
    "modalities": "text only",
    "moderation": "no model here does it",
    "previous_response_id": "responses are not stored",
    "prompt": "prompts are not stored",
    "reasoning": "models think as their template says",
    "reasoning_effort": "models think as their template says",
    "service_tier": "there is one",
    "store": "nothing is stored",
    "suffix": "models go on, and fill in nothing",
    "text.verbosity": "models write as they were trained",
    "truncation": "nothing is left out of a conversation",
    "verbosity": "models write as they were trained",
    "web_search_options": "there is no search",
}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
#: Requests whose members are known and may be refused by name.
_ASKED: dict[str, Any] = {
    "post /chat/completions": lambda: ChatRequest.model_validate(_CHAT),
    "post /completions": lambda: CompletionRequest(model="m", prompt="?"),
    "post /responses": lambda: ResponseRequest.model_validate({"model": "m", "input": "?"}),
}


@dataclass(frozen=True)
class Operation:
    """What an operation takes."""

    query: frozenset[str] = field(default_factory=frozenset)
    body: frozenset[str] = field(default_factory=frozenset)


def theirs() -> dict[str, Operation]:
    """METHOD PATH, with {} for each parameter of the path -> what OpenAI's document says."""
    found = json.loads(FACTS.read_text(encoding="utf-8"))["operations"]
    return {
        _key(one["method"], one["path"]): Operation(frozenset(one["query"]), frozenset(one["body"]))
        for one in found
    }


def ours(document: dict[str, Any]) -> dict[str, Operation]:
    """The same of our document."""
    found = {}
    for path, operations in document["paths"].items():
        for method, said in operations.items():
            query = [one["name"] for one in said.get("parameters", ()) if one["in"] == "query"]
            body = set()
            for content in said.get("requestBody", {}).get("content", {}).values():
                body |= set(_members(document, content["schema"]))
            # A form has the members of an object one by one.
            plain = {re.sub(r"\[.*\]$", "", name) for name in body}
            found[_key(method, path.removeprefix("/v1"))] = Operation(
                frozenset(query), frozenset(plain)
            )
    return found


def _key(method: str, path: str) -> str:
    return f"{method} {re.sub('{[^}]*}', '{}', path)}"


def _members(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    yield from schema.get("properties", ())
    for kind in ("allOf", "anyOf", "oneOf"):
        for one in schema.get(kind, ()):
            yield from _members(document, one)


def refused(operation: str) -> list[str]:
    """Members of an operation of which some value is refused, as its code says."""
    return sorted(_ASKED[operation]().refused()) if operation in _ASKED else []


def rows(document: dict[str, Any]) -> dict[str, str]:
    """Each operation -> what is said of it; an operation without a reason says `None`."""
    known, here = theirs(), ours(document)
    found = {}
    for one in sorted({*known, *here}, key=lambda one: (one.split(" ")[1], one)):
        if one not in here:
            found[one] = f"no: {ABSENT.get(one)}"
        elif one not in known:
            found[one] = f"yes: {OURS.get(one)}"
        else:
            reasons: dict[str, list[str]] = {}
            for name in refused(one):
                reasons.setdefault(str(REFUSED.get(name)), []).append(f"`{name}`")
            not_here = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
            found[one] = f"same, without {'; '.join(not_here)}" if not_here else "same"
    return found


def table(document: dict[str, Any]) -> str:
    """The rows as they stand in the page."""
    return HEAD + "".join(f"| `{one}` | {said} |\n" for one, said in rows(document).items())


def shown() -> str:
    """The table of the page."""
    _, head, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    return head + rest


def document() -> dict[str, Any]:
    """Our document, of a service made for it."""
    from launcher.serve.app import create_app
    from launcher.serve.http import openapi
    from launcher.serve.service import Service

    with tempfile.TemporaryDirectory() as folder:
        service = Service.open(Path(folder) / "home")
        found = openapi.document(create_app(service))
        service.database.engine.dispose()
    return found


def main() -> None:
    """Put the table at the end of the page."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(HEAD)
    PAGE.write_text(before + table(document()), encoding="utf-8")


if __name__ == "__main__":
    main()
