"""compose.yaml, Dockerfile and Apptainer definition agree with the package and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from launcher.config.check import checks
from launcher.config.compose import compose
from support.project import Project, conversations

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
#: Keys of a compose service, as far as ours may use them.
SERVICE_KEYS = {
    *("image", "build", "entrypoint", "command", "environment", "volumes", "hostname"),
    *("depends_on", "init", "shm_size", "stop_grace_period", "deploy"),
}


def _services(name: str) -> dict[str, dict]:
    content = yaml.safe_load((DOCKER / name).read_text())
    assert {key for key in content if not key.startswith("x-")} <= {"name", "services", "volumes"}
    return content["services"]


def _filled(word: str) -> str:
    """A word with ${NAME:-default} as compose fills it in."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)


def _torchrun(service: dict) -> tuple[dict[str, str], list[str]]:
    """(options of torchrun, words after the module) of a service's command line."""
    assert service["entrypoint"] == ["torchrun"]
    words = [_filled(word) for word in service["command"]]
    at = words.index("-m")
    assert words[at + 1] == "launcher.train"
    return dict(word.lstrip("-").split("=", 1) for word in words[:at]), words[at + 2 :]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_services_use_known_keys_only(name):
    for service in _services(name).values():
        assert set(service) <= SERVICE_KEYS


def test_the_nodes_meet_and_run_the_same():
    services = _services("compose.yaml")
    (first, overrides), *others = [_torchrun(service) for service in services.values()]
    assert all(other == (first, overrides) for other in others)
    assert int(first["nnodes"]) == len(services) == 2
    assert first["rdzv-backend"] == "c10d"
    assert first["rdzv-endpoint"].partition(":")[0] in services
    assert [service["hostname"] for service in services.values()] == list(services)


def test_the_overrides_compose():
    _, overrides = _torchrun(_services("compose.yaml")["node0"])
    assert checks.check(compose.compose(overrides), world_size=2, has_gpu=False) == []


def test_the_nodes_share_runs_and_caches_of_the_image():
    content = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in content["services"].values():
        for volume in service["volumes"]:
            name, _, target = volume.partition(":")
            assert name in content["volumes"]
            # A new volume takes the owner of the folder in the image; root's could not be written.
            assert re.search(rf"install -d .* -m 1777 .*{re.escape(target)}\b", DOCKERFILE)


def test_the_build_of_compose_is_there():
    build = _services("compose.yaml")["node0"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_the_gpu_file_gives_each_node_a_gpu_of_its_own():
    plain, gpu = _services("compose.yaml"), _services("compose.gpu.yaml")
    assert set(gpu) == set(plain)
    devices = [
        device["device_ids"]
        for service in gpu.values()
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert devices == [["0"], ["1"]]


def test_what_is_copied_is_let_through():
    passed = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {
        word.split("/")[0]
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == passed
    listed = re.search(r"%files\n(.*?)\n\n", (DOCKER / "apptainer.def").read_text(), re.DOTALL)
    assert {line.split()[0] for line in listed[1].splitlines()} == passed


def test_the_recipes_use_one_base_and_the_pins():
    definition = (DOCKER / "apptainer.def").read_text()
    bases = re.findall(r"BASE_IMAGE=(\S+)", DOCKERFILE + definition)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", bases[0]), "a base without a tag is not pinned"
    for text in (DOCKERFILE, definition):
        assert "-c constraints.txt" in text


def test_the_image_has_the_command_as_entry_point_and_no_root():
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r'^ENTRYPOINT \["launcher"\]$', final, re.MULTILINE)
    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE)


def test_hadolint_finds_nothing():
    command = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not command.exists() and not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed: make install")
    program = str(command) if command.exists() else "hadolint"
    words = [program, "--failure-threshold", "warning", str(DOCKER / "Dockerfile")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_compose_train_together(tmp_path, free_port):
    """Both services' own command lines, side by side on this machine, on less data."""
    project = Project(tmp_path)
    project.write_data(conversations(24))
    words = project.words("two-nodes", "train.steps=2", "batch.sequences=4", "experiment=null")
    started = []
    for name, service in _services("compose.yaml").items():
        options, _ = _torchrun(service)
        place = f"127.0.0.1:{free_port}"
        options |= {"rdzv-endpoint": place, "local-addr": "127.0.0.1"}
        agent = [f"--{key}={value}" for key, value in options.items()]
        torchrun = str(Path(sysconfig.get_path("scripts")) / "torchrun")
        command = [torchrun, *agent, "-m", "launcher.train"]
        started.append(project.start(command, *words, LAUNCHER_HOST=name))
    for node in started:
        done = node.end()
        assert done.code == 0, done.output
    run = project.folder_of("two-nodes")
    assert run.status().state.value == "succeeded"
    assert {log.name for log in run.attempt(1).glob("rank-*.log")} == {"rank-0.log", "rank-1.log"}


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]
