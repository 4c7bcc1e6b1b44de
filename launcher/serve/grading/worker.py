"""A process that reads graders of clients and grades with them: what it does may take all of its
time and memory, and the server loses nothing by its end.

    python -m launcher.serve.grading.worker

The first line of stdin are the site's `judges` and `graders` as JSON: command lines can be read by
everybody. Then it reads a request a line, {grader, where, is_criterion}, the same with {item,
sample}, or {schema, where, items}, and answers with a line each; an empty object says first that it
is there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any

from launcher.core.errors import ConfigError
from launcher.graders.grader import Grader
from launcher.graders.usage import Usage
from launcher.serve import judges
from launcher.serve.grading.schemas import Schema
from launcher.serve.site import GraderSettings, Site, SiteJudge

#: Address space: texts that are compared may need much, and never all of a machine's.
_MOST_BYTES = 8 << 30
#: Beyond the server's own patience: whoever waited has gone.
_GRACE_S = 10
_LONGEST = 2_000


def answer(request: dict[str, Any], site: Site) -> dict[str, Any]:
    """What is to be said to a request: `problems` of a grader or a schema, one of the `site`, or
    what was found."""
    if "schema" in request:
        return _fitted(request)
    types = judges.CRITERIA if request["is_criterion"] else judges.TYPES
    try:
        grader = judges.grader_of(request["grader"], site, request["where"], types)
    except ConfigError as error:
        below = (request["where"], f"{request['where']}.")
        if all(own.where == below[0] or own.where.startswith(below[1]) for own in error.problems):
            return _problems(error)
        return {"site": str(error)}  # such as the key of a judge
    try:
        if "sample" in request:
            return _graded(grader, request)
        wrong = list(grader.check(()))
        if wrong:
            return _problems(ConfigError(wrong))
        return {"reads": [list(place.key) for place in grader.places]}
    except ConfigError as error:  # of this machine: there are no namespaces
        found = [request["where"], "code cannot be run here: this machine has no namespaces", ""]
        return _problems(error) if "sandbox" not in str(error) else {"problems": [found]}
    finally:
        grader.close()


def _problems(error: ConfigError) -> dict[str, Any]:
    return {"problems": [[own.where, own.found, own.hint] for own in error.problems]}


def _fitted(request: dict[str, Any]) -> dict[str, Any]:
    """`misfits`: of each of the items what does not fit the schema, empty where it fits."""
    try:
        schema = Schema(request["schema"], request["where"])
    except ConfigError as error:
        return _problems(error)
    return {"misfits": [schema.misfit(item) for item in request["items"]]}


def _graded(grader: Grader, request: dict[str, Any]) -> dict[str, Any]:
    grade = grader.grade(request["item"], request["sample"])
    return {
        "score": grade.score,
        "errors": [[error.kind, error.message[:_LONGEST]] for error in grade.errors],
        "sub_scores": dict(grade.sub_scores),
        "seconds": grade.seconds,
        "reply": grade.metadata.get("reply"),
        "usage": {model: _counts(used) for model, used in grader.usage().items()},
        "model": getattr(grader, "model", None),
        "is_late": False,
    }


def _counts(used: Usage) -> dict[str, int]:
    return {**asdict(used), "total_tokens": used.prompt_tokens + used.completion_tokens}


def main() -> None:
    """Answer until there is no more."""
    settings = json.loads(sys.stdin.buffer.readline())
    site = Site(
        judges={name: SiteJudge(**members) for name, members in settings["judges"].items()},
        graders=GraderSettings(**settings["graders"]),
    )
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    # What libraries print is no answer.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    out.write(b"{}\n")  # it is there: from now on time is that of a request
    out.flush()
    while line := sys.stdin.buffer.readline():
        signal.alarm(int(site.graders.request_s) + _GRACE_S)
        found = answer(json.loads(line), site)
        signal.alarm(0)
        out.write(json.dumps(found).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
