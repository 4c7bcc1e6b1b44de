"""How a server is started: vLLM's own command, by what a run says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.config.schema import Config
from launcher.config.schema.rollout import VllmRolloutConfig
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.rollouts.engine import RolloutContext
from launcher.vllm.command import LORA_RANKS, command, lora_room


def command_of(
    context: RolloutContext, options: VllmRolloutConfig, base: Path, gpus: Sequence[str]
) -> tuple[str, ...]:
    """The command of each server, but for host and port; `base` is the model that it starts with,
    `gpus` those of each. `ConfigError` for adapters that it has no room for."""
    config, decoding = context.config, context.decoding
    mode = "raw_logprobs" if decoding.temperature == 1 else "processed_logprobs"
    words = command(options.python, base, read_json(context.run.plan)["dtype"])
    words += ["--max-model-len", str(config.data.max_length)]
    words += ["--logprobs-mode", mode, "--seed", str(config.seed % 2**31)]
    if config.model.trust_remote_code:
        words += ["--trust-remote-code"]
    if hasattr(context.model, "peft_config"):
        ranks = [own.r for own in context.model.peft_config.values()]
        room = lora_room(max(ranks))
        if room is None:
            raise ConfigError(
                f"vLLM has no room for adapters of rank {max(ranks)}",
                where="peft.rank",
                hint=f"peft.rank={LORA_RANKS[-1]}, or rollout=local",
            )
        words += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(room)]
    if gpus and (many := len(gpus[0].split(","))) > 1:
        words += ["--tensor-parallel-size", str(many)]
    if options.memory is not None:
        words += ["--gpu-memory-utilization", str(options.memory)]
    if options.sleep:
        words += ["--enable-sleep-mode"]
    return (*words, *options.options)


def gpus_of(config: Config, options: VllmRolloutConfig) -> tuple[str, ...]:
    """GPUs of each server of a host; none where it takes all that it sees."""
    gpus = tuple(options.gpus)
    if options.nodes and not gpus and (many := config.cluster.gpus_per_node):
        share = many // options.servers
        gpus = tuple(
            ",".join(map(str, range(place * share, (place + 1) * share)))
            for place in range(options.servers)
        )
    return gpus
