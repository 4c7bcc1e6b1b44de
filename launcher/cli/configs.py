"""Verbs about the config alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from launcher.cli import VERBS, arguments
from launcher.core.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    import argparse

    from launcher.config.derive.plan import Plan
    from launcher.config.schema import Config


PROBE: arguments.Argument = (
    ["--probe"],
    {"action": "store_true", "help": "measure real steps, an evaluation and a save on the ranks"},
)
WITHIN: arguments.Argument = (
    ["--within"],
    {"type": float, "metavar": "SECONDS", "help": "longest time for --probe (default: 110)"},
)
SIMULATE: arguments.Argument = (
    ["--simulate"],
    {"action": "store_true", "help": "estimate steps, start, saves and failures at --ranks"},
)
RANKS: arguments.Argument = (
    ["--ranks"],
    {"type": int, "metavar": "N", "help": "ranks of --simulate (default: those of the config)"},
)


def plan(words: list[str]) -> int:
    """Print the numbers that follow from a config on this machine."""
    parsed = arguments.overrides("plan", words, arguments.JSON, PROBE, WITHIN, SIMULATE, RANKS)
    from launcher.config import create
    from launcher.config.derive import plan
    from launcher.runs import requirements, start

    if parsed.simulate or parsed.ranks is not None:
        return _simulate(parsed)
    config, made = create.checked(parsed.overrides, config_dirs=parsed.config_dir)
    if parsed.probe:
        requirements.require(config)
        return _probe(config, made, parsed.json, parsed.within)
    if parsed.json:
        print(arguments.as_json(plan.as_dict(made)))
    else:
        print(plan.describe(config, made))
    sys.stdout.flush()  # the numbers first: a model may be planned for before it is here
    requirements.require(config)
    if config.run.name:
        start.require_free(create.named(config, parsed.overrides))
    return ExitCode.ok


def _simulate(parsed: argparse.Namespace) -> int:
    from launcher.config import create
    from launcher.config.check import checks
    from launcher.config.compose import compose
    from launcher.config.derive import plan, scale

    if not parsed.simulate:
        hint = "add --simulate; a run's own ranks are launch.processes and launch.nodes"
        raise ConfigError("ranks of no simulation", where="--ranks", hint=hint)
    if parsed.probe:
        raise ConfigError("it starts nothing", where="--simulate", hint="leave out --probe")
    if parsed.ranks is not None and parsed.ranks < 1:
        raise ConfigError(f"{parsed.ranks} ranks", where="--ranks", hint="give 1 or more")
    sources = compose.Sources(parsed.config_dir)
    config, problems = compose.try_compose(parsed.overrides, sources=sources)
    if problems:
        raise ConfigError(compose.located(problems, parsed.overrides, sources))
    ranks, has_gpu = parsed.ranks or create.planned_world(config), config.cluster.gpus_per_node > 0
    problems = checks.check(config, world_size=ranks, has_gpu=has_gpu)
    if problems:
        raise ConfigError(compose.located(problems, parsed.overrides, sources))
    found = scale.simulate(config, plan.make(config, world_size=ranks, has_gpu=has_gpu))
    print(arguments.as_json(scale.as_dict(found)) if parsed.json else scale.text(found))
    return ExitCode.ok


def _probe(config: Config, made: Plan, as_json: bool, within: float | None) -> int:
    from launcher.config.derive import plan
    from launcher.runs import probe, start

    start.refuse_in_rank("run")
    if not as_json:
        print(plan.describe(config, made), flush=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    trials = probe.probe(config, made, say, limit_s=within or probe.LIMIT_S)
    if as_json:
        found = {**plan.as_dict(made), "probe": probe.as_dict(config, trials)}
        print(arguments.as_json(found))
    else:
        print(probe.text(config, trials), flush=True)
    probe.require_measured(trials)
    return ExitCode.ok


def config(words: list[str]) -> int:
    """Print the resolved config, the DeepSpeed dict made of it, or where one key comes from."""
    parsed = arguments.overrides(
        "config",
        words,
        arguments.JSON,
        (["--deepspeed"], {"action": "store_true", "help": "print the DeepSpeed dict"}),
        (["--explain"], {"metavar": "KEY", "help": "which file or override sets KEY"}),
    )
    if parsed.explain:
        print(_explain(parsed.overrides, parsed.explain, parsed.config_dir, parsed.json))
    elif parsed.deepspeed:
        from launcher.config import create
        from launcher.config.derive import deepspeed

        config, made = create.checked(parsed.overrides, config_dirs=parsed.config_dir)
        if made.zero is None:
            print("one rank has nothing to shard: it trains without this", file=sys.stderr)
        print(arguments.as_json(deepspeed.build(config, made)))
    else:
        from launcher.config.compose import compose

        config = compose.compose(parsed.overrides, parsed.config_dir)
        if parsed.json:
            print(arguments.as_json(compose.to_dict(config)))
        else:
            print(compose.dump(config), end="", flush=True)
        _say_whether_it_can_run(config)
    return ExitCode.ok


def _say_whether_it_can_run(config: Config) -> None:
    """What keeps a config from being planned: it may be kept in a file, and be trusted there."""
    from launcher.config import create

    try:
        create.judged(config, [])
    except ConfigError as error:
        print("as it is, it cannot be run:", *error.problems, sep="\n", file=sys.stderr)


def _explain(words: list[str], key: str, config_dirs: list[str], json: bool) -> str:
    from launcher.config.compose import explanation

    sources = explanation.explain(words, key, config_dirs)
    if not json:
        return explanation.text(sources, key)
    return arguments.as_json([{"place": s.place, "value": s.value} for s in sources])


def completion(words: list[str]) -> int:
    """Print the script for a shell; the scripts come back here with `--words`."""
    from launcher.config.compose import completion

    if words[:1] == ["--words"]:
        current, *line = words[1:] or [""]
        print("\n".join(_completions(line, current)))
        return ExitCode.ok
    shell: arguments.Argument = (["shell"], {"choices": completion.SHELLS, "help": "your shell"})
    print(completion.script(arguments.plain("completion", words, shell).shell), end="")
    return ExitCode.ok


def _completions(line: list[str], current: str) -> list[str]:
    from launcher.config.compose import completion

    verbs = [verb.split() for verb in VERBS]
    known = len(line)
    further = [verb[known] for verb in verbs if known and verb[:known] == line and verb[known:]]
    if further:
        return [word for word in dict.fromkeys(further) if word.startswith(current)]
    return completion.words(list(dict.fromkeys(verb[0] for verb in verbs)), line, current)
