"""Code of the user's own that grades."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.core.errors import Problem
from launcher.graders.errors import Ungraded
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.sandbox.pool import CodeSandbox


class PythonGrader(Grader):
    """What the function `grade(sample, item)` of the source returns, any number, run in a sandbox
    with this installation's Python and libraries."""

    range = (float("-inf"), float("inf"))

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read the source; workers start with the first answer."""
        super().__init__(members, setting)
        self._source, self._where = members.text("source"), members.at("source")
        if members.value("image_tag") is not None:
            hint = "leave it out: the code runs with the Python that the launcher runs with"
            members.complain("image_tag", "there are no images here", hint)
        self._sandbox = CodeSandbox(setting.limits)
        self.at_once = self._sandbox.workers

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """The number, with the end of what the code has printed."""
        found = self._sandbox.run(
            {"source": self._source, "item": dict(item), "sample": sample.plain()}
        )
        printed = {"output": found["output"]} if found["output"] else {}
        if "score" in found:
            return Grade(found["score"], metadata=printed)
        if "error" in found:
            raise Ungraded("python_grader_runtime_error", found["error"], **printed)
        why = found.get("stopped") or found["lost"]
        raise Ungraded("python_grader_server_error", why, **printed)

    def check(self, items: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Problem]:
        """What keeps the source from being run, whatever the items are."""
        found = self._sandbox.run({"source": self._source})
        if "score" not in found:
            why = found.get("error") or found.get("stopped") or found["lost"]
            yield Problem(self._where, why, "it must define grade(sample, item)")

    def close(self) -> None:
        """End the workers."""
        self._sandbox.close()
