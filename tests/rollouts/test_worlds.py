"""Environments in processes of their own: what they say, and what ends them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.config.schema import GradersConfig, SandboxLevel
from launcher.core import processes
from launcher.core.errors import ConfigError
from launcher.rollouts.environments.worlds import EnvironmentFailed, Worlds
from support.configs import make_config
from support.speaking import CALCULATOR

pytestmark = pytest.mark.slow

ITEM = {"left": 3, "right": 4}
SAID = {"role": "assistant", "content": "even"}
#: Between turns it would count on, in a thread and in a process of its own.
COUNTS = """
import os, threading, time
class Environment:
    def reset(self, item):
        self.count, self.read = 0, os.pipe()
        threading.Thread(target=self.run, daemon=True).start()
        if not os.fork():
            while True:
                time.sleep(0.01)
                os.write(self.read[1], b"x")
        time.sleep(0.2)
    def run(self):
        while True:
            time.sleep(0.01)
            self.count += 1
    def step(self, message):
        os.set_blocking(self.read[0], False)
        ticks = self.count + len(os.read(self.read[0], 1 << 16))
        time.sleep(0.2)
        return [{"role": "user", "content": f"{ticks} {self.count}"}]
"""


@pytest.fixture(params=["auto", "limits"])
def make(request, tmp_path):
    opened = []

    def made(code: str, **options: object) -> Worlds:
        (tmp_path / "own.py").write_text(code)
        config = make_config(
            objective={
                "name": "grpo",
                "environment": str(tmp_path / "own.py"),
                "turn_s": 5.0,
                **options,
            },
            eval={"graders": GradersConfig(sandbox=SandboxLevel[request.param], processes=16)},
        )
        opened.append(Worlds(config))
        return opened[-1]

    yield made
    for worlds in opened:
        worlds.close()
    assert not [pid for pid in processes.descendants(os.getpid()) if _is_sandbox(pid)]


def _is_sandbox(pid: int) -> bool:
    try:
        return b"sandbox import worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_episodes_side_by_side_know_nothing_of_each_other(make):
    worlds = make(CALCULATOR)
    one, two = worlds.open(1), worlds.open(2)
    assert one.reset(ITEM).messages == [{"role": "user", "content": "3 + 4 ="}]
    begun = two.reset({"left": 1, "right": 1})
    assert begun.messages == [{"role": "user", "content": "1 + 1 ="}]
    assert begun.scores
    more = [{"role": "user", "content": "You said even. Again?"}]
    assert one.step(SAID) == more
    assert two.step({**SAID, "content": "odd"})
    assert one.step(SAID) is None
    assert (one.score(), two.score()) == (2, 0)
    for world in (one, two):
        world.close()
    again = worlds.open(3)  # in a process that was there before
    again.reset(ITEM)
    assert again.score() == 0
    again.close()


def test_answers_of_a_group_have_the_same_chances(make):
    code = "import random\nclass Environment:\n  def reset(self, item):\n"
    worlds = make(f"{code}    return [dict(role='user', content=str(random.random()))]")
    said = []
    for seed in (5, 5, 6):
        world = worlds.open(seed)
        said.append(world.reset({}).messages)
        world.close()
    assert said[0] == said[1] != said[2]


def test_modules_beside_the_file_come_along(make, tmp_path):
    (tmp_path / "words.py").write_text("HELLO = 'hello'\n")
    code = "from .words import HELLO\nclass Environment:\n  def reset(self, item):\n"
    world = make(f"{code}    return [dict(role='user', content=HELLO)]").open(0)
    assert world.reset({}).messages == [{"role": "user", "content": "hello"}]
    world.close()


def test_between_turns_it_stands_still(make):
    world = make(COUNTS).open(0)
    assert world.reset({}).messages is None
    first = world.step(SAID)
    assert first is not None
    counted = int(first[0]["content"].split()[1])
    time.sleep(2)
    second = world.step(SAID)
    assert second is not None
    ticks = int(second[0]["content"].split()[0])
    assert ticks < counted + 100  # else about 400 more
    world.close()


FAULTS = {
    "hang": ("all(True for _ in iter(int, 1))", "it took longer than 1 s"),
    "sleep": ("import time; time.sleep(60)", "it took longer than 1 s"),
    "exit": ("raise SystemExit(4)", "SystemExit: 4"),
    "gone": ("import os; os._exit(4)", "it ended itself with exit code 4"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
    "memory": ("x = bytearray(1 << 40)", "MemoryError"),
    "recursion": ("return self.step(message)", "RecursionError"),
    "number": ("return 5", "step returned 5, which is no list of messages"),
    "empty": ("return []", "step returned [], which is no list of messages"),
    "one": ("return {'role': 'user', 'content': 'x'}", "no list of messages"),
    "bytes": ("return [{'role': 'user', 'content': b'x'}]", "not JSON serializable"),
    "parts": ("return [{'role': 'user', 'content': ['x']}]", "without a text as its content"),
    "other": ("return [{'role': 'model', 'content': 'x'}]", "a message of role 'model'"),
    "forged": ("import os; os.write(3, b'\\0\\0\\0\\2{}')", "something else than a result"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_one_episode_alone(make, fault):
    code, said = FAULTS[fault]
    line = "        self.turns += 1\n"
    bad = CALCULATOR.replace(line, f"{line}        if message['content'] == 'bad': {code}\n")
    worlds = make(bad, turn_s=1.0)
    one, two = worlds.open(1), worlds.open(2)
    one.reset(ITEM)
    two.reset(ITEM)
    with pytest.raises(EnvironmentFailed) as caught:
        one.step({**SAID, "content": "bad"})
    assert said in str(caught.value)
    one.close()
    assert two.step(SAID)
    two.close()
    third = worlds.open(3)
    assert third.reset(ITEM).messages
    third.close()


@pytest.mark.parametrize("value", ["float('nan')", "'x'", "[1]", "None", "1 / 0"])
def test_a_score_is_a_number(make, value):
    world = make(CALCULATOR.replace("return self.even", f"return {value}")).open(0)
    world.reset(ITEM)
    with pytest.raises(EnvironmentFailed, match="score"):
        world.score()
    world.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = (", "SyntaxError"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
        ("class Other: pass", "Environment"),
        ("class Environment:\n  def __init__(self): 1 / 0", "line 2: ZeroDivisionError"),
        ("class Environment: pass", "reset"),
        ("class Environment:\n  def reset(self): pass", "reset"),
        (
            "class Environment:\n  def reset(self, item):\n"
            "    return [dict(role='assistant', content='x')]",
            "the last is the assistant's",
        ),
        (
            "class Environment:\n  tools = [{'name': 'f'}]\n  def reset(self, item): pass",
            "tools is no list of functions",
        ),
    ],
)
def test_what_is_no_environment_is_told(make, code, said):
    world = make(code).open(0)
    with pytest.raises(EnvironmentFailed) as caught:
        world.reset(ITEM)
    assert said in str(caught.value)
    world.close()


@pytest.mark.parametrize(
    "said", ["{'content': chr(0xd83d)}", "{'content': 'x', 'name': chr(0xdc00)}"]
)
def test_half_a_character_is_replaced(make, said):
    code = f"class Environment:\n  def reset(self, item):\n    return [dict(role='user', **{said})]"
    world = make(code).open(0)
    json.dumps(world.reset(ITEM), ensure_ascii=False).encode()
    world.close()
    world = make("class Environment:\n  def reset(self, item): raise ValueError(chr(0xd83d))").open(
        0
    )
    with pytest.raises(EnvironmentFailed) as caught:
        world.reset(ITEM)
    str(caught.value).encode()


def test_more_than_the_system_has_files_for_are_refused(make):
    worlds = make(CALCULATOR)
    worlds.require_room(8)
    with pytest.raises(ConfigError, match="ulimit -Hn"):
        worlds.require_room(10**8)


def test_a_file_that_is_gone_is_told(make, tmp_path):
    worlds = make(CALCULATOR)
    (tmp_path / "own.py").unlink()
    world = worlds.open(0)
    assert world.reset(ITEM).messages  # the run has read it
    world.close()
    with pytest.raises(ConfigError, match="objective.environment"):
        make_missing(tmp_path)


def make_missing(folder: Path) -> Worlds:
    name = str(folder / "nowhere.py")
    return Worlds(make_config(objective={"name": "grpo", "environment": name}))
