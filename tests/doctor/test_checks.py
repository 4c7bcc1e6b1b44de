"""Each check's verdict on facts that are right, and on facts that are wrong in one way."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from launcher.doctor import checks, finding, machine, ranks, services, storage, versions
from launcher.doctor.finding import CheckFinding, Severity, failed, passed, warned
from launcher.launch.queue import QueueHealth
from support.configs import make_config
from support.doctor import GIB, folder, host, rank, seen


def verdicts(findings) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict.value) for finding in findings]


def worst(findings) -> str:
    return finding.as_dict(list(findings))["verdict"]


def test_a_healthy_job_passes_every_check():
    healthy = seen(
        rank(0, machine=host("node1")),
        rank(1, "node2", machine=host("node2")),
        services={"queues": {"slurm": QueueHealth(False, "not here", "load it")}, "hub": None},
    )
    findings = [f for f in checks.judge(healthy) if f.check not in healthy.here["packages"]]
    assert {f.check for f in findings} >= {
        *("python", "devices", "open files", "/dev/shm", "run.root", "hub", "ranks"),
        *("shared folder", "shared locks", "clocks", "collectives", "all_reduce"),
    }
    main = [
        f for f in findings if f.check not in versions.MAIN and "is not installed" not in f.found
    ]
    assert {f.verdict for f in main} == {Severity.ok}


@pytest.mark.parametrize(
    ("asked", "version", "verdict"),
    [
        ("torch>=2.11", "2.13.0+cu130", "pass"),
        ("torch>=2.11", "2.10.1", "fail"),
        ("torch>=2.11", None, "fail"),
        ("torch>=2.11", "2.12.0.dev20260101", "pass"),
        ("hydra-core>=1.3.2,<1.4", "1.4.0", "fail"),
        ("optuna>=5; extra == 'sweep'", "0.1", "warn"),
        ("optuna>=5; extra == 'sweep'", None, "pass"),
    ],
)
def test_a_version_fits_or_not(asked, version, verdict):
    assert worst(versions.judge(Requirement(asked), version)) == verdict


def test_versions_must_be_the_same_on_all_hosts():
    old = host("node2", packages={"torch": "2.12.0", "numpy": "2.0"})
    found = list(
        versions.same_everywhere(seen(rank(0, machine=host()), rank(1, "node2", machine=old)))
    )
    assert verdicts(found) == [("torch", "fail")]
    assert "2.13.0 on node1, 2.12.0 on node2" in found[0].found


def test_a_gpu_that_torch_does_not_see_fails():
    report = rank(0, machine=host(gpus=8))
    (first, *_) = machine.devices(seen(report))
    assert (first.check, first.verdict) == ("devices", Severity.fail)


def test_mixed_devices_are_a_warning():
    other = rank(1)
    other["torch"]["device_name"] = "GPU"
    assert worst(machine.devices(seen(rank(0), other))) == "warn"


def test_ranks_without_the_planned_gpus_fail():
    config = make_config(launch={"name": "slurm"}, cluster={"gpus_per_node": 4})
    assert worst(machine.wanted_gpus(seen(rank(0), config=config))) == "fail"
    assert worst(machine.wanted_gpus(seen(rank(0)))) == "pass"


@pytest.mark.parametrize(
    ("check", "changes", "verdict"),
    [
        (machine.open_files, {"limits": {"open_files": 1024, "locked_memory": None}}, "warn"),
        (machine.open_files, {"limits": {"open_files": None, "locked_memory": None}}, "pass"),
        (machine.shm, {"shm_bytes": 64 << 20}, "warn"),
        (machine.shm, {"shm_bytes": None}, "warn"),
        (machine.variables, {"variables": {"NCCL_P2P_DISABLE": "1"}}, "warn"),
        (machine.variables, {"variables": {"NCCL_P2P_DISABLE": "0"}}, "pass"),
        (machine.variables, {"variables": {"NCCL_ALGO": "Ring"}}, "warn"),
        (machine.variables, {"variables": {"NCCL_DEBUG": "WARN"}}, "pass"),
        (machine.variables, {"variables": {"NCCL_SOCKET_IFNAME": "ib"}}, "fail"),
        (machine.variables, {"variables": {"NCCL_SOCKET_IFNAME": "eth"}}, "pass"),
        (machine.variables, {"variables": {"NCCL_SOCKET_IFNAME": "=eth"}}, "fail"),
        (machine.variables, {"variables": {"NCCL_SOCKET_IFNAME": "^lo"}}, "pass"),
        (machine.variables, {"variables": {"GLOO_SOCKET_IFNAME": "eth"}}, "fail"),
        (machine.variables, {"variables": {"GLOO_SOCKET_IFNAME": "eth0"}}, "pass"),
        (machine.threads, {"cpus": 1, "variables": {"OMP_NUM_THREADS": "2"}}, "warn"),
        (machine.threads, {"variables": {"OMP_NUM_THREADS": "2"}}, "pass"),
    ],
)
def test_limits_and_settings_of_a_host(check, changes, verdict):
    assert worst(check(make_config(), host(**changes))) == verdict


def test_locked_memory_matters_with_infiniband_only():
    limits = {"open_files": 65536, "locked_memory": 8 << 20}
    assert not list(machine.locked_memory(make_config(), host(limits=limits)))
    with_infiniband = host(limits=limits, infiniband=["mlx5_0"])
    assert worst(machine.locked_memory(make_config(), with_infiniband)) == "warn"


def test_a_compiler_matters_only_if_something_is_built():
    bare, config = host(programs=[]), make_config(optim={"name": "muon"})
    assert not list(machine.compiler(make_config(), bare))
    assert worst(machine.compiler(config, bare)) == "fail"
    assert worst(machine.compiler(config, host())) == "pass"


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("run.root", {}, "pass"),
        ("run.root", {"error": "Read-only file system"}, "fail"),
        ("hub cache", {"error": "Permission denied"}, "warn"),
        ("run.root", {"free_bytes": GIB // 2}, "fail"),
        ("run.root", {"free_bytes": 5 * GIB}, "warn"),
        ("run.root", {"reserved": False}, "fail"),
        ("cache", {"free_files": 3}, "fail"),
        ("run.root", {"free_files": None}, "pass"),
        ("run.root", {"write_s": 0.5}, "warn"),
        ("run.root", {"locks": False}, "fail"),
    ],
)
def test_a_folder(name, changes, verdict):
    findings = list(storage.judge(name, folder(**changes)))
    assert worst(findings) == verdict
    assert all(finding.hint for finding in findings if finding.verdict is not Severity.ok)


def _shared(**changes):
    return {"visible_s": 0.001, "torn": False, "locked": True, **changes}


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({}, "shared folder", "pass"),
        ({"visible_s": None}, "shared folder", "fail"),
        ({"torn": True}, "shared folder", "fail"),
        ({"visible_s": 5.0}, "shared folder", "warn"),
        ({"locked": False}, "shared locks", "fail"),
    ],
)
def test_the_shared_folder(changes, check, verdict):
    found = verdicts(storage.shared(seen(rank(0), rank(1, "node2", shared=_shared(**changes)))))
    assert (check, verdict) in found


def test_a_rank_that_never_came_is_named():
    (found,) = ranks.came(seen(rank(0), rank(2, "node2"), asked=4, trouble="not finished"))
    assert found.verdict is Severity.fail
    assert "no word from 2 of 4: 1, 3; heard from node1, node2" in found.found
    assert "not finished" in found.found


def test_a_rank_that_stopped_is_named_with_the_place():
    stuck = rank(1, "node2", done=False, phase="all_reduce")
    (found,) = ranks.came(seen(rank(0), stuck))
    assert found.verdict is Severity.fail
    assert "rank 1 on node2 stuck in: all_reduce" in found.found


def test_a_rank_that_failed_is_quoted():
    (found,) = ranks.came(seen(rank(0, done=False, error="HangError: nobody came"), asked=1))
    assert found.verdict is Severity.fail
    assert "HangError: nobody came" in found.found


def test_no_rank_at_all_says_why():
    (found,) = ranks.came(seen(asked=2, trouble="sbatch: invalid partition"))
    assert "none of 2 reported: sbatch: invalid partition" in found.found


def test_wrong_sums_name_the_host():
    broken = rank(1, "node2")
    broken["collectives"] = {"all_reduce": {**broken["collectives"]["all_reduce"], "wrong": 3}}
    (found,) = ranks.collectives(seen(rank(0), broken))
    assert found.verdict is Severity.fail
    assert "all_reduce gave wrong numbers on ranks [1] (node2)" in found.found


def test_bandwidth_is_judged_between_gpus_only():
    slow = rank(0)
    slow["collectives"]["all_reduce"].update(bus=1e8)
    assert worst(ranks.bandwidth(seen(slow, rank(1)))) == "pass"
    slow["torch"]["device"] = "cuda"
    assert worst(ranks.bandwidth(seen(slow, rank(1)))) == "warn"
    assert not list(ranks.bandwidth(seen(slow)))


@pytest.mark.parametrize(("offset_s", "verdict"), [(0.01, "pass"), (-3.0, "warn"), (90.0, "fail")])
def test_clocks_of_two_hosts(offset_s, verdict):
    found = list(ranks.clocks(seen(rank(0), rank(1, "node2", clock_s=offset_s))))
    assert worst(found) == verdict
    assert len(found) == 1


def test_services_that_do_not_answer():
    on_slurm = make_config(launch={"name": "slurm"})
    down = {"queues": {"slurm": QueueHealth(True, "the controller does not answer", "ask")}}
    assert worst(services.schedulers(seen(services=down, config=on_slurm))) == "fail"
    assert worst(services.schedulers(seen(services=down))) == "warn"
    absent = {"queues": {"slurm": QueueHealth(False, "sbatch is not on the path", "load it")}}
    assert worst(services.schedulers(seen(services=absent, config=on_slurm))) == "fail"
    assert not list(services.schedulers(seen(services=absent)))
    up = {"queues": {"slurm": QueueHealth(True, "Slurmctld(primary) is UP")}}
    assert verdicts(services.schedulers(seen(services=up))) == [("Slurm", "pass")]
    assert worst(services.hub(seen(services={"hub": "no route"}))) == "warn"
    assert worst(services.hub(seen(services={"queues": {}}))) == "pass"
    assert worst(services.wandb(seen(services={"wandb": "refused", "credentials": True}))) == "warn"
    assert worst(services.wandb(seen(services={"wandb": None, "credentials": False}))) == "warn"
    assert not list(services.wandb(seen(services={"credentials": True})))


def test_an_address_where_nobody_listens(unused_port):
    assert "refused" in services.reach(f"http://127.0.0.1:{unused_port}", timeout_s=2.0)
    assert "not a web address" in services.reach("file:///etc/passwd")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def test_equal_findings_of_hosts_become_one():
    small = host("node2", shm_bytes=64 << 20)
    both = seen(
        rank(0, machine=host()), rank(1, "node2", machine=small), rank(2, "n3", machine=host("n3"))
    )
    found = list(checks.each_host(machine.shm)(both))
    assert [(f.verdict.value, f.hosts) for f in found] == [
        ("pass", ("node1", "n3")),
        ("warn", ("node2",)),
    ]


# ---- the table


FINDINGS = [
    passed("python", "3.11"),
    warned("hub", "no answer", "go offline"),
    failed("ranks", "one missing\nlast words", "look there"),
]


def test_the_table_is_aligned_and_says_what_to_do():
    assert finding.text(FINDINGS, color=False).splitlines() == [
        "python  pass  3.11",
        "hub     warn  no answer",
        "              -> go offline",
        "ranks   fail  one missing",
        "              last words",
        "              -> look there",
        "",
        "1 pass, 1 warn, 1 fail",
    ]


def test_colour_is_only_added():
    import re

    colored = finding.text(FINDINGS, color=True)
    assert "\033[31;1mfail\033[0m" in colored
    assert re.sub(r"\033\[[\d;]*m", "", colored) == finding.text(FINDINGS, color=False)


def test_hosts_are_shown_when_there_are_several():
    findings = [CheckFinding("shm", Severity.ok, "8 GiB", hosts=("a", "b"))]
    assert "8 GiB [a, b]" in finding.text(findings, color=False)


def test_json_has_the_worst_verdict():
    assert finding.as_dict(FINDINGS)["verdict"] == "fail"
    assert finding.as_dict(FINDINGS[:2])["verdict"] == "warn"
    assert finding.as_dict([])["verdict"] == "pass"
