"""`python -m launcher.interruptible MODULE ...` is `python -m MODULE ...`, and Ctrl-C ends it with
its exit code and without a traceback also while MODULE still imports. Standard library only."""

from __future__ import annotations

import runpy
import sys

from launcher.errors import ExitCode


def command(module: str, *words: str) -> list[str]:
    """The command line that runs `module` with `words`."""
    return [sys.executable, "-m", "launcher.interruptible", module, *words]


def main() -> None:
    """Become the module that the command line names."""
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.interrupted))


if __name__ == "__main__":
    main()
