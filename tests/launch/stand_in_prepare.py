"""Data preparation without a tokenizer: `python -m stand_in_prepare RUN`."""

from __future__ import annotations

import subprocess
import sys
import time

from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.fingerprint import LAYOUT_VERSION

run = RunDir(sys.argv[1])
script = read_json(run.path / "stand_in.json", {})
if "prepare_s" in script:
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("preparing data", flush=True)
time.sleep(script.get("prepare_s", 0))
if "prepare_code" in script:
    print("train.jsonl:3: not JSON", flush=True)
    sys.exit(script["prepare_code"])
cache = run.path / "cache"
write_json(cache / "index.json", {"version": LAYOUT_VERSION})
write_json(run.data, {"train": str(cache), "validation": None})
