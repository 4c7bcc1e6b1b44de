"""Queues, the hub and Weights & Biases: who answers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launcher.config.schema import Config, WandbMode
from launcher.core import runtime
from launcher.doctor.finding import CheckFinding, Seen, failed, passed, warned
from launcher.launch.queue import queue_of, queues

TIMEOUT_S = 5.0


def ask(config: Config) -> dict[str, Any]:
    """What services answer, asked side by side: queues, hub, wandb.

    queues: name of a launch back end -> its `QueueHealth`. hub, wandb: None if all is well, else
    what is wrong; absent where they are not to be asked.
    """
    addresses = {}
    hub = runtime.hub_endpoint()
    if hub:
        addresses["hub"] = hub
    if config.track.wandb.mode in (WandbMode.online, WandbMode.auto):
        addresses["wandb"] = runtime.wandb_endpoint()
    with ThreadPoolExecutor() as pool:
        replies = {name: pool.submit(reach, url) for name, url in addresses.items()}
        asked = {n: pool.submit(queue.health) for n in queues() if (queue := queue_of(n))}
        found: dict[str, Any] = {name: reply.result() for name, reply in replies.items()}
        found["queues"] = {name: health.result() for name, health in asked.items()}
    found["credentials"] = runtime.has_wandb_credentials()
    return found


def reach(url: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """None if a web server answers at `url`, else why not."""
    if not url.startswith(("https://", "http://")):
        return f"{url} is not a web address"
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        # An answer all the same; a server error is none to rely on.
        return None if error.code < 500 else f"{url}: {error}"
    except (OSError, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def schedulers(seen: Seen) -> Iterator[CheckFinding]:
    """Each queue takes jobs; silence of one that is neither wanted nor there."""
    for name, health in seen.services.get("queues", {}).items():
        wanted, queue = seen.config.launch.name == name, queue_of(name)
        if queue is None or not (wanted or health.is_here):
            continue
        say = failed if wanted else warned
        if health.hint:
            yield say(queue.title, health.found, health.hint)
        else:
            yield passed(queue.title, health.found)


def hub(seen: Seen) -> Iterator[CheckFinding]:
    """The Hugging Face hub, from which models and data sets come."""
    if not seen.services:
        return
    if "hub" not in seen.services:
        yield passed("hub", "offline, as HF_HUB_OFFLINE says: only what is cached can be used")
    elif seen.services["hub"]:
        hint = "download on a host with network, then set HF_HUB_OFFLINE=1; or give folders"
        yield warned("hub", seen.services["hub"], hint)
    else:
        yield passed("hub", "answers")


def wandb(seen: Seen) -> Iterator[CheckFinding]:
    """Weights & Biases, if runs are to be tracked there."""
    if "wandb" not in seen.services:
        return
    hint = "track.wandb.mode=offline keeps the run; `wandb sync` uploads it later"
    if seen.services["wandb"]:
        yield warned("wandb", seen.services["wandb"], hint)
    elif not seen.services["credentials"]:
        yield warned("wandb", "answers, but there are no credentials", "`wandb login`")
    else:
        yield passed("wandb", "answers, and there are credentials")
