"""What the ranks reported: who came, whether collectives are right, how fast, and their clocks."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.core import console
from launcher.doctor.finding import CheckFinding, Seen, failed, passed, warned

#: Bus bandwidth in bytes/s under which GPUs must be connected in some wrong way.
BUS_WARN = {"one host": 4e9, "several hosts": 1e9}
CLOCK_WARN_S = 1.0
CLOCK_FAIL_S = 60.0


def came(seen: Seen) -> Iterator[CheckFinding]:
    """Whether every rank came and went through all of the probe."""
    if not seen.asked:
        return
    if seen.trouble and not seen.ranks:
        hint = "`launcher doctor --keep` keeps the logs of the ranks"
        yield failed("ranks", f"none of {seen.asked} reported: {seen.trouble}", hint)
        return
    missing = [rank for rank in range(seen.asked) if rank not in seen.ranks]
    for report in seen.ranks.values():
        if report.get("error"):
            hint = "mend what it says; `launcher doctor --keep` keeps the logs"
            where = f"rank {report['rank']} on {report['host']}"
            yield failed("ranks", f"{where}: {report['error']}", hint)
    if missing:
        hint = "were they started, and is run.root the same folder on every host?"
        known = sorted({report["host"] for report in seen.ranks.values()})
        heard = f"; heard from {', '.join(known)}" if known else ""
        trouble = f"\n{seen.trouble}" if seen.trouble else ""
        listed = ", ".join(map(str, missing))
        found = f"no word from {len(missing)} of {seen.asked}: {listed}{heard}{trouble}"
        yield failed("ranks", found, hint)
        return
    stuck = [r for r in seen.ranks.values() if not r["done"] and not r.get("error")]
    for report in stuck:
        found = f"rank {report['rank']} on {report['host']} stuck in: {report['phase']}"
        yield failed("ranks", found, "look at that host, and at the network between the hosts")
    if not stuck and not any(report.get("error") for report in seen.ranks.values()):
        hosts = {report["host"] for report in seen.ranks.values()}
        yield passed("ranks", f"{seen.asked} joined, on {counted(len(hosts), 'host')}")


def counted(count: int, what: str) -> str:
    """1 host, 2 hosts."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def collectives(seen: Seen) -> Iterator[CheckFinding]:
    """Whether collectives gave what they must, on every rank."""
    wrong: dict[str, list[int]] = {}
    names: list[str] = []
    for rank, report in seen.ranks.items():
        for name, values in report.get("collectives", {}).items():
            if name not in names:
                names.append(name)
            if values["wrong"]:
                wrong.setdefault(name, []).append(rank)
    for name, ranks in wrong.items():
        hint = "broken memory, GPU or link: exclude the host (cluster.exclude) and tell the site"
        hosts = sorted({seen.ranks[rank]["host"] for rank in ranks})
        found = f"{name} gave wrong numbers on ranks {ranks} ({', '.join(hosts)})"
        yield failed("collectives", found, hint)
    if names and not wrong:
        yield passed("collectives", f"{', '.join(names)}: right on all ranks")


def bandwidth(seen: Seen) -> Iterator[CheckFinding]:
    """Algorithm and bus bandwidth of each collective; see docs/doctor.md for what they mean."""
    if len(seen.ranks) < 2:
        return
    first = next(iter(seen.ranks.values()))
    several = len({report["host"] for report in seen.ranks.values()}) > 1
    where = "several hosts" if several else "one host"
    on_gpu = first.get("torch", {}).get("device") != "cpu"
    for name, values in first.get("collectives", {}).items():
        bus = values["bus"]
        found = (
            f"{console.size(values['bytes'])} in {values['seconds'] * 1000:.2f} ms: "
            f"algorithm {values['algorithm'] / 1e9:.2f} GB/s, bus {bus / 1e9:.2f} GB/s"
        )
        numbers = {key: values[key] for key in ("bytes", "seconds", "algorithm", "bus")}
        if on_gpu and bus < BUS_WARN[where]:
            hint = "look at NCCL_DEBUG=INFO: NVLink or InfiniBand may not be in use"
            yield warned(name, f"{found}, slow between GPUs of {where}", hint, **numbers)
        else:
            yield passed(name, found, **numbers)


def clocks(seen: Seen) -> Iterator[CheckFinding]:
    """How far the hosts' clocks are apart; heartbeats are judged by them."""
    offsets: dict[str, float] = {}
    for report in seen.ranks.values():
        if report.get("clock_s") is not None:
            offsets.setdefault(report["host"], report["clock_s"])
    if len(offsets) < 2:
        return
    spread = max(offsets.values()) - min(offsets.values())
    worst = max(offsets, key=lambda host: abs(offsets[host]))
    numbers = {"spread_s": spread}
    if spread > CLOCK_WARN_S:
        say = failed if spread > CLOCK_FAIL_S else warned
        hint = "have the hosts keep time with NTP (chronyd)"
        yield say("clocks", f"{worst} is {offsets[worst]:+.1f} s off rank 0's", hint, **numbers)
    else:
        found = f"{spread * 1000:.0f} ms apart over {len(offsets)} hosts"
        yield passed("clocks", found, **numbers)
