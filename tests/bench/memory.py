"""The plan's memory against what ranks hold: ten models, every ZeRO stage, all weights and LoRA.

    python tests/bench/memory.py                               # the whole table, half an hour
    python tests/bench/memory.py --only llama --stages 2 3     # some of it
    python tests/bench/memory.py --write results.json          # for `--table results.json`
    python tests/bench/memory.py --table results.json          # the Markdown table of a file

Each row is `launcher train` on real ranks (gloo, CPU) with a random model of some 25 million
parameters. `memory.json` of its run folder holds the estimate by part and what each rank has held.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from launcher.core.rundir import RunDir, State
from support.chats import chat
from support.ranks import environment

MODELS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "olmo2", "smollm3")
MODELS += ("gemma2", "gemma3_text", "qwen3_moe")
STAGES = (0, 1, 2, 3)
METHODS = ("none", "lora")
SIZES: dict[str, Any] = {
    "vocab_size": 6_000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: What a model type needs besides.
SPECIAL: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    "mistral": {"sliding_window": None},
}
WORDS = (
    *("data.validation_share=0", "data.max_length=256", "data.workers=1", "data.train=data.jsonl"),
    *("data.cache=cache", "train.log_every_steps=1"),
    *("eval=none", "export.at_end=false", "train.steps=2", "train.threads=1"),
    *("batch.sequences=8", "batch.micro=2", "launch.processes=2", "track=none"),
)


def make_model(kind: str, folder: Path) -> Path:
    """A random model of a type with the sizes above, and a tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from support.models import make_tokenizer

    make_tokenizer(folder)
    config = CONFIG_MAPPING[kind](**SIZES, **SPECIAL.get(kind, {}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def measure(folder: Path, cases: list[tuple[str, list[str]]], log: Path) -> Iterator[Any]:
    """Train each of the named runs on two ranks; yields what memory.json says of each in turn."""
    (folder / "cases.json").write_text(
        json.dumps([[*WORDS, f"run.name={name}", *words] for name, words in cases])
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("memory_child.py")), str(folder / "cases.json")]
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=output, stderr=output
        )
    try:
        for name, _ in cases:
            run = RunDir(folder / "runs" / name)
            while not (run.exists() and run.status().state is State.succeeded):
                if process.poll():
                    raise SystemExit(f"{name} failed, see {log}")
                time.sleep(0.2)
            yield json.loads(run.memory.read_text())
    finally:
        process.terminate()
        process.wait()


def compared(model: str, stage: int, method: str, found: dict[str, Any]) -> dict[str, Any]:
    """A row: planned and measured bytes of the rank that held most."""
    planned = found["planned"]
    worst = max(found["ranks"], key=lambda rank: rank["peak"])
    total = sum(planned.values())
    return {
        "model": model,
        "zero": stage,
        "peft": method,
        "planned": planned,
        "measured": worst,
        "total": total,
        "peak": worst["peak"],
        "error": total / worst["peak"] - 1,
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a row a model and method, a column a stage."""
    stages = sorted({row["zero"] for row in rows})
    yield "| model | trained | " + " | ".join(f"ZeRO-{stage}" for stage in stages) + " |"
    yield "|---|---|" + "---|" * len(stages)
    for model, method in dict.fromkeys((row["model"], row["peft"]) for row in rows):
        cells = []
        for stage in stages:
            row = next((r for r in rows if _key(r) == (model, stage, method)), None)
            cells.append("-" if row is None else _cell(row))
        trained = {"none": "all", "lora": "LoRA"}[method]
        yield f"| {model} | {trained} | " + " | ".join(cells) + " |"


def _key(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["model"], row["zero"], row["peft"]


def _cell(row: dict[str, Any]) -> str:
    return f"{row['total'] / 2**20:.1f} / {row['peak'] / 2**20:.1f} ({row['error']:+.0%})"


def line(row: dict[str, Any]) -> str:
    """A row in full, in MiB."""
    mib = {use: round(size / 2**20, 1) for use, size in row["planned"].items() if size}
    held = {use: round(size / 2**20, 1) for use, size in row["measured"].items()}
    return f"{_key(row)} {_cell(row)} planned {mib} held {held}"


def main() -> None:
    """Measure what was asked for, or print a table of what was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument("--stages", nargs="*", type=int, default=STAGES)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--words", nargs="*", default=[], help="further overrides")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="output of the ranks")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table:
        print(*table(json.loads(asked.table.read_text())), sep="\n")
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = (chat(f"What is {n} + {n}?", f"It is {2 * n}. " * 40) for n in range(300))
        (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        # ZeRO-3 last: DeepSpeed changes torch's functions for it, and they stay changed.
        keys = sorted(
            itertools.product(asked.only, asked.methods, asked.stages), key=lambda key: key[2] == 3
        )
        cases = [
            (
                "-".join(map(str, key)),
                [f"model.name={folder / key[0]}", f"peft={key[1]}", f"engine.zero={key[2]}"]
                + asked.words,
            )
            for key in keys
        ]
        for kind in asked.only:
            make_model(kind, folder / kind)
        found = measure(folder, cases, asked.log)
        for (kind, method, stage), held in zip(keys, found, strict=True):
            rows.append(compared(kind, stage, method, held))
            print(line(rows[-1]), flush=True)
            if asked.write:
                asked.write.write_text(json.dumps(rows, indent=1))
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
