"""Verbs of the fine-tuning service: the server and its keys."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.core.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from launcher.serve.service import Service

PORT = 8700
_HOME: Argument = (
    ["--home"],
    {
        "type": Path,
        "default": Path("serve"),
        "metavar": "DIR",
        "help": "folder of the service: settings, files, jobs (default: %(default)s)",
    },
)


def serve(words: list[str]) -> int:
    """Serve the fine-tuning API until Ctrl-C; jobs run on after that."""
    parsed = arguments.plain(
        "serve",
        words,
        *arguments.listen(PORT),
        _HOME,
        (["--demo-key"], {"metavar": "KEY", "help": "a key for trying out, on this host only"}),
        (
            ["--log-format"],
            {"choices": ("text", "json"), "default": "text", "help": "on stderr: %(default)s"},
        ),
    )
    if parsed.log_format == "json":  # what is missing is told so too
        from launcher.serve.http import logs

        logs.start(parsed.log_format)
    arguments.need_server("launcher serve")
    from launcher.serve import server

    return server.run(parsed.home, parsed.host, parsed.port, parsed.demo_key, parsed.log_format)


def create(words: list[str]) -> int:
    """Make an API key and print it."""
    parsed = arguments.plain(
        "serve keys create",
        words,
        (["name"], {"metavar": "NAME", "help": "whose key it is"}),
        (
            ["--project"],
            {"default": "default", "help": "whose files, jobs and models: %(default)s"},
        ),
        (
            ["--rpm"],
            {"type": int, "metavar": "N", "help": "requests a minute; default: the site's"},
        ),
        (
            ["--admin"],
            {"action": "store_true", "help": "for permissions between projects, nothing else"},
        ),
        _HOME,
    )
    if parsed.rpm is not None and parsed.rpm < 1:
        hint = "a number of requests, 1 or more"
        raise ConfigError(f"{parsed.rpm} is too small", where="--rpm", hint=hint)
    for option in ("name", "project"):
        if not vars(parsed)[option].isprintable() or not vars(parsed)[option].strip():
            raise ConfigError("is no name", where=option, hint="some printable characters")
    service = _open(parsed.home)
    from launcher.serve.http import access

    made = access.create_key(
        *(service.database, parsed.name, parsed.project, parsed.rpm), is_admin=parsed.admin
    )
    print(made)
    print("this key is shown this once: only its hash is kept", file=sys.stderr)
    return ExitCode.ok


def index(words: list[str]) -> int:
    """Print whose keys there are; the keys themselves are kept nowhere."""
    parsed = arguments.plain("serve keys list", words, arguments.JSON, _HOME)
    service = _open(parsed.home)
    from launcher.serve.http import access

    rows = [
        {
            "id": key.id,
            "name": key.name,
            "project": project,
            "project_id": key.project_id,
            "is_admin": key.is_admin,
            "key": key.hint,
            "requests_per_minute": key.requests_per_minute,
            "created_at": key.created_at,
            "revoked_at": key.revoked_at,
        }
        for key, project in access.list_keys(service.database)
    ]
    if parsed.json:
        print(arguments.as_json(rows))
        return ExitCode.ok
    for row in rows:
        state = "revoked" if row["revoked_at"] else "admin" if row["is_admin"] else "good"
        project = f"{row['project_id']}  {row['project']}"
        print(f"{row['id']}  {row['key']}  {state:<7}  {project}  {row['name']}")
    return ExitCode.ok


def revoke(words: list[str]) -> int:
    """End a key; a running server refuses it within a second."""
    parsed = arguments.plain(
        "serve keys revoke",
        words,
        (["id"], {"metavar": "ID", "help": "as `launcher serve keys list` prints it"}),
        _HOME,
    )
    service = _open(parsed.home)
    from launcher.serve.http import access

    if not access.revoke_key(service.database, parsed.id):
        words = ["launcher", "serve", "keys", "list", "--home", str(parsed.home)]
        hint = f"`{shlex.join(words)}` prints the ids"
        raise ConfigError(f"there is no key {parsed.id!r}", where="command line", hint=hint)
    return ExitCode.ok


def _open(home: Path) -> Service:
    arguments.need_server("launcher serve")
    from launcher.serve.service import Service

    return Service.open(home)
