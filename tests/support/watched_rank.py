"""A rank that notes what it imports: `watched_rank.py OUT WORDS OF launcher.train`.

When its first step is logged it writes to OUT, as JSON, the CPU seconds of each module's own code
(without the modules that this one imports first) and those of the whole process. It has imported
nothing that another process of Python has not.
"""

import importlib._bootstrap as bootstrap  # type: ignore[import-not-found]
import sys
import time


def watch(out: str) -> None:
    """Note every import from now on."""
    seconds: dict[str, float] = {}
    inner = [0.0]
    find_and_load = bootstrap._find_and_load

    def timed(name: str, import_: object) -> object:
        began = time.thread_time()
        inner.append(0.0)
        try:
            module = find_and_load(name, import_)
            seconds[name] = time.thread_time() - began - inner[-1]
            return module
        finally:
            inner.pop()
            inner[-1] += time.thread_time() - began

    def opened(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith("/metrics.jsonl"):
            found = [dict(seconds), time.process_time()]
            seconds.clear()
            bootstrap._find_and_load = find_and_load
            if found[0]:
                import json

                with open(out, "w") as file:
                    json.dump(found, file)

    bootstrap._find_and_load = timed
    sys.addaudithook(opened)


if __name__ == "__main__":
    import runpy

    watch(sys.argv.pop(1))
    del sys.path[0]
    runpy.run_module("launcher.train", run_name="__main__", alter_sys=True)
