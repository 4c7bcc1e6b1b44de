"""What a model's process says, line by line, and what becomes of those who wait when it fails."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from launcher.serve.chat.model_process import Died, Failed, Talker

_SAYS = """
import sys, time
sys.stdin.readline()
print({said})
sys.stdout.flush()
time.sleep(600)
"""


@pytest.mark.parametrize("said", ["'x' * 200_000", "'no JSON'", "'{}'"])
def test_a_line_that_cannot_be_read_ends_the_process_and_wakes_all(said: str) -> None:
    async def run() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SAYS.replace("{said}", said)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 16,
        )
        talker = Talker(process)
        assert process.stdout is not None
        talker._reader = asyncio.create_task(talker._read(process.stdout))

        async def ask() -> None:
            async for _ in talker.ask({}):
                pass

        ended = await asyncio.wait_for(
            asyncio.gather(ask(), ask(), return_exceptions=True), timeout=30
        )
        assert [type(one) for one in ended] == [Died, Died]
        await talker.stop()
        assert process.returncode == -9

    asyncio.run(run())


@pytest.mark.parametrize("ends", ["at once", "later", "never"])
def test_its_folder_goes_with_a_process_however_it_ends(tmp_path: Path, ends: str) -> None:
    module = tmp_path / "speaks.py"
    lines = ["import sys, time", "print('{}')" if ends != "at once" else "", "sys.stdout.flush()"]
    module.write_text("\n".join([*lines, "time.sleep(600)" if ends == "never" else "sys.exit(1)"]))
    scratch = tmp_path / "scratch"
    (scratch / "model").mkdir(parents=True)

    async def run() -> None:
        started = Talker.start(
            (),
            str(tmp_path),
            {**os.environ, "PYTHONPATH": f"{tmp_path}"},
            module="speaks",
            to_end_s=1,
            scratch=scratch,
        )
        if ends == "at once":
            with pytest.raises(Failed):
                await started
            return
        talker = await started
        if ends == "never":
            assert scratch.exists()
            await talker.stop()
        else:
            assert talker._reader is not None
            await talker._reader

    asyncio.run(run())
    assert not scratch.exists()
