"""What commands of the run plane share: where messages go, and what a failure's exit code is."""

from __future__ import annotations

import sys
from collections.abc import Callable

from launcher.core import streams
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import storage_error


def note(text: str) -> None:
    """A message for people: on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def exit_code_of(work: Callable[[], None]) -> int:
    """Run the work of a command; errors with a known cause are printed and give their exit code."""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the results any more: the work ended before its end
        streams.discard(sys.stdout, sys.stderr)
        return int(ExitCode.interrupted)
    except LauncherError as error:
        streams.complain(error)
        return int(error.exit_code)
    except OSError as error:
        known = streams.unwritable(error) or storage_error(error)
        if known is None:
            raise
        streams.complain(known)
        return int(known.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.interrupted)
    return int(ExitCode.ok)
