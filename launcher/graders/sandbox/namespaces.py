"""A world of its own for a process: no network, no other processes, and of all files the ones that
are shown, which cannot be changed. Standard library only.

bubblewrap makes the same of a command; here the process itself has to be inside, from which code is
forked.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence

from launcher.graders.sandbox import system

#: Where code may write.
WORK = "/sandbox"
#: Where programs do, too; it may be where Python lies.
_TEMPORARY = "/tmp"  # noqa: S108 - of the new world
#: Who runs code there, where root may let somebody else do so; the number outside and inside.
_NOBODY, INSIDE = 65534, 1

_DEVICES = ("null", "zero", "full", "random", "urandom")
_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ALL = (
    system.CLONE_NEWUSER
    | system.CLONE_NEWNS
    | system.CLONE_NEWPID
    | system.CLONE_NEWNET
    | system.CLONE_NEWUTS
    | system.CLONE_NEWIPC
)


def enter() -> int | None:
    """Go on in new namespaces, as their first process, whose end ends all others.

    The caller's own process waits for that one and ends with it. Returns the user id for code to
    run under; None if there is but one. Raises `OSError` where the machine does not allow it.
    """
    user = _leave()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    system.end_with_parent(signal.SIGKILL)
    return user


def _leave() -> int | None:
    """Unshare; a helper that stays behind says which user is which, as only it may."""
    own, group, is_root = os.geteuid(), os.getegid(), os.geteuid() == 0
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    helper = os.fork()
    if not helper:
        os.close(ask)
        if os.read(asked, 1):
            pair = [(INSIDE, _NOBODY)]
            several = is_root and _map(os.getppid(), [(0, own), *pair], [(0, group), *pair])
            single = several or _map(os.getppid(), [(0, own)], [(0, group)])
            os.write(tell, b"2" if several else b"1" if single else b"0")
        os._exit(0)
    os.close(tell)
    try:
        system.unshare(_ALL)
        os.write(ask, b"x")
        answer = os.read(told, 1)
    finally:
        for descriptor in (asked, ask, told):
            os.close(descriptor)
        os.waitpid(helper, 0)
    if answer not in (b"1", b"2"):
        raise OSError("user ids cannot be mapped")
    return INSIDE if answer == b"2" else None


def _map(process: int, users: list[tuple[int, int]], groups: list[tuple[int, int]]) -> bool:
    try:
        for name, pairs in (("uid", users), ("gid", groups)):
            if name == "gid" and len(pairs) == 1:
                _write(f"/proc/{process}/setgroups", "deny")
            lines = "".join(f"{inside} {outside} 1\n" for inside, outside in pairs)
            _write(f"/proc/{process}/{name}_map", lines)
    except OSError:
        return False
    return True


def build(place: str, folders: Sequence[str]) -> None:
    """Make a root of its own in the empty folder `place` and go there: the system's folders and
    `folders`, which cannot be changed, and `WORK`. Raises `OSError`."""
    system.mount("none", "/", flags=system.MS_REC | system.MS_PRIVATE)
    system.mount("tmpfs", place, "tmpfs", system.MS_NOSUID | system.MS_NODEV, "size=1m,mode=755")
    for source, target in _shown(folders):
        at = place + target
        if os.path.islink(source) and source == target:
            os.makedirs(os.path.dirname(at), exist_ok=True)
            os.symlink(os.readlink(source), at)
            continue
        _make(at, is_folder=os.path.isdir(source))
        system.mount(source, at, flags=system.MS_BIND | system.MS_REC)
        system.make_read_only(at)
    for name in _DEVICES:
        _make(f"{place}/dev/{name}", is_folder=False)
        system.mount(f"/dev/{name}", f"{place}/dev/{name}", flags=system.MS_BIND)
    os.symlink("/proc/self/fd", f"{place}/dev/fd")
    os.symlink(WORK, f"{place}/dev/shm")  # noqa: S108 - where locks between processes lie
    _write(f"{place}/etc/passwd", f"root:x:0:0::{WORK}:/bin/sh\ngrader:x:1:1::{WORK}:/bin/sh\n")
    for folder in ("/proc", WORK):
        os.mkdir(place + folder)
    if not os.path.lexists(place + _TEMPORARY):
        os.symlink(WORK, place + _TEMPORARY)
    system.mount("proc", f"{place}/proc", "proc", system.MS_NOSUID | system.MS_NODEV)
    system.become_root_folder(place)
    # A namespace within has all capabilities again, and with them much more of the kernel.
    _write("/proc/sys/user/max_user_namespaces", "0")
    flags = system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY
    for mounted in ("/", "/proc"):  # in the latter are switches of the whole machine
        system.mount("none", mounted, flags=flags | system.MS_NOSUID | system.MS_NODEV)


def _shown(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is shown: where it lies, and where it is to be seen. A folder that is reached through
    links is seen at both of its paths."""
    seen: list[str] = []
    for path in (*_SYSTEM, *_FILES, *folders):
        is_system = path in _SYSTEM
        for target in dict.fromkeys([path] if is_system else [path, os.path.realpath(path)]):
            source = path if is_system else os.path.realpath(path)
            known = any(target == one or target.startswith(f"{one}/") for one in seen)
            if os.path.lexists(source) and not known:
                seen.append(target)
                yield source, target


def renew_work(megabytes: int) -> None:
    """An empty folder for the next code, within which so much may be written."""
    if os.path.ismount(WORK):
        system.unmount(WORK)
    options = f"size={megabytes}m,nr_inodes=16k,mode=1777"
    system.mount("tmpfs", WORK, "tmpfs", system.MS_NOSUID | system.MS_NODEV, options)


def _make(path: str, *, is_folder: bool) -> None:
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        _write(path, "")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
