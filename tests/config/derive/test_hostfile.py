"""Hostfiles and the choice of hosts and slots, compared with what DeepSpeed makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.derive import hostfile
from launcher.config.derive.hostfile import Host
from launcher.config.schema.launch import DeepspeedConfig
from launcher.core.errors import ConfigError

POOL = [Host("n1", (0, 1, 2, 3)), Host("n2", (0, 1)), Host("n3", (0,))]


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "hosts"
        file.write_text(text)
        return file

    return write


def hosts(file, **options):
    return hostfile.hosts(DeepspeedConfig(hostfile=file.name, **options), file.parent)


def test_hosts_come_in_the_order_of_the_file(write):
    file = write(
        "# two nodes\n\nb slots=2\n  a\tslots = 1  # the small one\nuser@10.0.0.3 slots=1\n"
    )
    assert hosts(file) == [Host("b", (0, 1)), Host("a", (0,)), Host("user@10.0.0.3", (0,))]


def test_all_bad_lines_are_named_at_once(write):
    file = write("a slots=2\nb\nc slots=two\na slots=1\nd slots=0\n-oProxyCommand=x slots=1\n")
    with pytest.raises(ConfigError) as caught:
        hosts(file)
    problems = caught.value.problems
    assert [problem.where for problem in problems] == [f"{file}:{line}" for line in (2, 3, 4, 5, 6)]
    assert "not a line of a hostfile: 'b'" in problems[0].found
    assert "host a stands here twice" in problems[2].found
    assert "at least one" in problems[3].found
    assert "not the name of a host" in problems[4].found
    assert all(problem.hint for problem in problems)


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_empty_hostfile(write, text):
    with pytest.raises(ConfigError, match="no host in the hostfile"):
        hosts(write(text))


def test_missing_and_unreadable_hostfiles(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        hosts(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        hosts(tmp_path / "binary")
    with pytest.raises(ConfigError, match="no hostfile is given"):
        hostfile.hosts(DeepspeedConfig(), Path())


def test_nodes_and_processes_must_fit_the_hostfile(write):
    file = write("a slots=2\nb slots=4\n")
    assert hosts(file, nodes=2, processes=2) == [Host("a", (0, 1)), Host("b", (0, 1))]
    with pytest.raises(ConfigError, match="3 nodes, but there are 2 hosts"):
        hosts(file, nodes=3)
    with pytest.raises(ConfigError, match="host a has 2 slots"):
        hosts(file, processes=3)
    with pytest.raises(ConfigError, match="both"):
        hosts(file, include="a", exclude="b")
    assert hosts(file, exclude="a") == [Host("b", (0, 1, 2, 3))]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("n4", "'n4' is not in the hostfile"),
        ("n1:7", "no slot 7"),
        ("n1:", "does not name hosts"),
        ("n1:0-2", "does not name hosts"),
        ("n1@@n2", "does not name hosts"),
    ],
)
def test_wrong_choices(text, word):
    for choose in (hostfile.included, hostfile.excluded):
        with pytest.raises(ConfigError, match=word):
            choose(POOL, text)


def test_excluding_everything():
    with pytest.raises(ConfigError, match="no host is left"):
        hostfile.excluded(POOL, "n1@n2@n3:0")


@st.composite
def choices(draw):
    """A text such as n1@n3:0,2; a host comes once, as DeepSpeed's own parser wants it."""
    parts = []
    for host in draw(st.lists(st.sampled_from(POOL), min_size=1, unique=True)):
        slots = draw(st.lists(st.sampled_from(host.slots), unique=True))
        parts.append(host.name + (":" + ",".join(map(str, slots)) if slots else ""))
    return "@".join(parts)


@pytest.fixture(scope="module")
def deepspeed_choose():
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    return parse_inclusion_exclusion


@pytest.mark.slow
@given(text=choices())
def test_choices_mean_what_they_mean_to_deepspeed(deepspeed_choose, text):
    pool = {host.name: len(host.slots) for host in POOL}
    theirs = deepspeed_choose(pool, text, "")
    assert {h.name: list(h.slots) for h in hostfile.included(POOL, text)} == dict(theirs)
    theirs = deepspeed_choose(pool, "", text)
    if theirs:
        assert {h.name: list(h.slots) for h in hostfile.excluded(POOL, text)} == dict(theirs)
