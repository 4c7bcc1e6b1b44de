"""Names of fine-tuned models: ft:MODEL:ORGANIZATION:SUFFIX:ID[:ckpt-step-N]."""

from __future__ import annotations

import hashlib
import re
import string

from launcher.serve.db.tables import Job

_LETTERS = string.ascii_letters + string.digits


def final_name(job: Job, organization: str) -> str:
    """The model that the job ends with; a job that was replayed keeps the name that it had."""
    if kept := job.asked.get("final_name"):
        return str(kept)
    return _name(job, organization, _letters(f"{job.id} final", 8))


def checkpoint_name(job: Job, organization: str, step: int) -> str:
    """The model of the checkpoint of `step`, before the last one."""
    number = _letters(f"{job.id} {step}", 8)
    return f"{_name(job, organization, number)}:ckpt-step-{step}"


def checkpoint_id(job: Job, step: int) -> str:
    """Id of the checkpoint of `step`; the same whoever asks, so that it is noted once."""
    return f"ftckpt_{_letters(f'{job.id} checkpoint {step}', 24)}"


def base_of(model: str) -> str:
    """The base that stands in the name of a fine-tuned model; any other name as it is."""
    parts = model.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 1 else model


def offer_of(job: Job) -> str:
    """The offer of the site that a job's model comes from, be it by way of other jobs."""
    return str(job.asked.get("offer") or base_of(job.model))


def _name(job: Job, organization: str, number: str) -> str:
    suffix = _plain(job.suffix or "")
    # The client's own name for its base: other programs know what a model of that name can do.
    base = base_of(str(job.asked.get("model") or job.model))
    return f"ft:{base}:{_plain(organization)}:{suffix}:{number}"


def _plain(text: str) -> str:
    """What can stand in a URL and between colons."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _letters(text: str, count: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    found = ""
    for _ in range(count):
        number, index = divmod(number, len(_LETTERS))
        found += _LETTERS[index]
    return found
