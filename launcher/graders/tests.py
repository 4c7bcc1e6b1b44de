"""Tests that are run on the code of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from launcher.graders.errors import GradingError, Ungraded
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.sandbox.pool import CodeSandbox

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def code_of(text: str) -> str:
    """The last fenced block of an answer; the whole of an answer without one."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


class TestsGrader(Grader):
    """1 if the command ends with exit code 0, else 0. It runs in a sandbox, in a folder that holds
    the answer's last block of code as `file`, and `files`."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read command and files; workers start with the first answer."""
        super().__init__(members, setting)
        self._input = members.template("input", "{{ sample.output_text }}")
        self._command = members.texts("command", ())
        if not self._command:
            members.complain("command", "is missing", 'write ["python", "-m", "pytest", "-q"]')
        self._file = members.text("file", "answer.py")
        self._files = {
            name: members.filled(text if isinstance(text, str) else "", f"files.{name}")
            for name, text in members.mapping("files", {}).items()
        }
        for name in (self._file, *self._files):
            path = PurePosixPath(str(name))
            if path.is_absolute() or ".." in path.parts or not path.name or "\0" in str(name):
                members.complain(
                    "files", f"{name!r} is no name of a file", "such as test_answer.py"
                )
        self._sandbox = CodeSandbox(setting.limits)
        self.at_once = self._sandbox.workers

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """1 or 0, with exit code and the end of the output; 0 if a limit has stopped it."""
        files = {str(name): text.fill(item, sample) for name, text in self._files.items()}
        files = {self._file: code_of(self._input.fill(item, sample)), **files}
        found = self._sandbox.run({"command": self._command, "files": files})
        told = {"output": found["output"]}
        if "exit_code" in found:
            code = found["exit_code"]
            return Grade(float(code == 0), metadata={"exit_code": code, **told})
        if "stopped" in found:
            error = GradingError("python_grader_runtime_error", found["stopped"])
            return Grade(0.0, (error,), metadata=told)
        raise Ungraded("python_grader_server_error", found.get("error") or found["lost"], **told)

    def close(self) -> None:
        """End the workers."""
        self._sandbox.close()
