"""Build a Dockerfile and run the image with buildah: no engine, no registry, nothing left behind.

The base image comes from the machine's own distribution by mmdebstrap, packages from where pip of
this machine is set up to find them.
"""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.host import storage

APT_LINE = "apt-get install -y --no-install-recommends buildah mmdebstrap"
PROGRAMS = ("buildah", "mmdebstrap", "apt-get")
BASE, IMAGE = "localhost/base:test", "localhost/launcher:test"
PACKAGES = "ca-certificates,python3,python3-venv"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require() -> None:
    """Skip where images cannot be built, and say what would make it possible."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid() != 0:
        pytest.skip("building an image needs root here")
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: {APT_LINE}")


class Images:
    """A store of images in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        kind = storage.measure(folder, reserve_bytes=1)["filesystem"]
        driver = "vfs" if kind == "overlay" else "overlay"
        places = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
        self._buildah = ("buildah", *places, "--storage-driver", driver)

    def buildah(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run buildah; `AssertionError` with its output if that fails."""
        done = subprocess.run(
            [*self._buildah, *map(str, words)],
            env={**os.environ, "TMPDIR": str(self._temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=1500,
        )
        assert done.returncode == 0 or not check, f"{words}\n{done.stdout[-6000:]}"
        return done

    def make_base(self) -> None:
        """An image of this machine's distribution, with Python."""
        context = self.folder / "base"
        context.mkdir()
        release = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
        )["VERSION_CODENAME"]
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"]
            + ["Created-By: Packages"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        sources = self.folder / "sources.list"
        # Only the distribution's own suites: a third party's may not know this architecture.
        lines = sorted({line for line in listed.splitlines() if f" {release}" in line})
        sources.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
            + [f"--include={PACKAGES}", release, str(context / "base.tar"), str(sources)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (context / "Dockerfile").write_text(
            f'FROM scratch\nADD base.tar /\nENV PATH={_PATH}\nCMD ["sh"]\n'
        )
        self._build(BASE, context / "Dockerfile", context)
        shutil.rmtree(context)

    def build(self, dockerfile: Path, context: Path, **arguments: str) -> None:
        """Build a Dockerfile on that base."""
        words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        base = f"--build-arg=BASE_IMAGE={BASE}"
        self._build(IMAGE, dockerfile, context, base, *words, *_pip_of_host(self.folder))

    def _build(self, name: str, dockerfile: Path, context: Path, *words: str) -> None:
        fixed = ("--isolation", "chroot", "--format", "docker", "--layers=false", "--pull-never")
        self.buildah("bud", *fixed, *words, "-t", name, "-f", dockerfile, context)

    def start(self) -> str:
        """A container of the built image."""
        return self.buildah("from", "--pull-never", IMAGE).stdout.split()[-1]

    def run(self, container: str, *command: str, check: bool = True) -> str:
        """Output of a command in the container, as the image's user."""
        words = ("run", "--isolation", "chroot", container, "--", *command)
        return self.buildah(*words, check=check).stdout

    def remove(self) -> None:
        """Take everything away again, mounts too."""
        self.buildah("rm", "--all", check=False)
        self.buildah("rmi", "--all", "--force", check=False)
        place = str(self.folder)
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(place)), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder)


def _pip_of_host(folder: Path) -> list[str]:
    """Volumes that give RUN steps what pip on this machine is set up with."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values, volumes = {}, {}
    for line in shown.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install", ":env:") and name != "require-virtualenv":
            values[name] = str(ast.literal_eval(value))
    for name, value in values.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # An index folder points at files beside it.
                path = path.parent if path.name == "simple" else path
                volumes[str(path)] = volumes[str(path.resolve())] = None
        # pip takes several values from several lines.
        values[name] = "\n".join(value.split()) if "\n" in value else value
    config = configparser.RawConfigParser()
    config["global"] = values
    with open(folder / "pip.conf", "w") as file:
        config.write(file)
    return [
        f"--volume={folder / 'pip.conf'}:/etc/pip.conf:ro",
        *(f"--volume={path}:{path}:ro" for path in volumes),
    ]
