"""How fast data becomes a cache, packs, and a first batch.

    python tests/bench/prepare.py encode --data chats.jsonl --tokenizer FOLDER
    python tests/bench/prepare.py packing
    python tests/bench/prepare.py open --records 50000000
    python tests/bench/prepare.py memory

`encode` compares the whole preparation (reading, rendering, masking, writing) with `encode_batch`
of the tokenizers library on the texts that come of it, each on all CPUs, in turns. `memory` prints
the peak of a preparation of some data and of ten times as much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def encode(data: Path, tokenizer_folder: str, rounds: int) -> None:
    """Times of both, and their ratio."""
    from launcher.data.tokenizer import hide_torch

    hide_torch()
    from launcher.data import sources
    from launcher.data.formats import Reader
    from launcher.data.prepare.encoding import ExampleEncoder
    from launcher.data.tokenizer import load_tokenizer

    config = _config(data, tokenizer_folder)
    tokenizer = load_tokenizer(config.model)
    reader, encoder = Reader("chat", {}), ExampleEncoder(tokenizer)
    texts = [
        encoder.render(reader.read(record)[0]).text  # type: ignore[union-attr,index]
        for chunk in sources.chunks(data, 0)
        for _, record in chunk.parse()
    ]
    size = sum(map(len, texts))
    print(f"{len(texts):,} records, {size / 1e6:.1f} M characters, {os.cpu_count()} CPUs")
    # A process of its own: threads and forks do not go together.
    script = (
        "import json,sys,time;from tokenizers import Tokenizer;"
        "t=Tokenizer.from_file(sys.argv[1]);t.no_truncation();t.no_padding();"
        "texts=json.load(sys.stdin);begun=time.perf_counter();cpu=time.process_time();"
        "[t.encode_batch(texts[i:i+10000],add_special_tokens=False)"
        " for i in range(0,len(texts),10000)];"
        "print(time.perf_counter()-begun,time.process_time()-cpu)"
    )
    alone, whole = [], []
    for _ in range(rounds):
        command = [sys.executable, "-c", script, f"{tokenizer_folder}/tokenizer.json"]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(
            command,
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        alone.append(tuple(map(float, done.stdout.split())))
        before = os.times()
        seconds = _prepare(config, tokenizer)
        after = os.times()
        whole.append((seconds, sum(after[:4]) - sum(before[:4])))
    # CPU seconds are what a machine that is shared can still compare.
    for number, unit in ((0, "s"), (1, "CPU s")):
        a, b = min(one[number] for one in alone), min(one[number] for one in whole)
        print(f"encode_batch {a:.2f} {unit}, prepare {b:.2f} {unit}: {a / b:.2f} of its speed")


def _config(data: Path, tokenizer_folder: str, **options: Any) -> Any:
    from launcher.config.compose import compose

    folder = tempfile.mkdtemp(prefix="bench-prepare-")
    overrides = [f"{key}={value}" for key, value in options.items()]
    return compose.compose(
        [
            f"model.name={tokenizer_folder}",
            f"data.train={data}",
            "data.validation_share=0",
            "eval=none",
            f"data.cache={folder}",
            *overrides,
        ]
    )


def _prepare(config: Any, tokenizer: Any = None) -> float:
    from launcher.data.prepare.preparation import prepare

    shutil.rmtree(config.data.cache, ignore_errors=True)
    begun = time.perf_counter()
    prepare(config, tokenizer)
    return time.perf_counter() - begun


def packing() -> None:
    """Seconds for a million lengths at several capacities."""
    from launcher.data.pack.packing import PackedOrder

    rng = np.random.default_rng(0)
    for capacity in (1024, 4096, 32768, 131072):
        lengths = np.clip(rng.lognormal(np.log(capacity / 8), 1.0, 1_000_000), 1, capacity)
        for name, drawn in (
            ("log-normal", lengths.astype(np.int32)),
            ("uniform", rng.integers(1, capacity + 1, 1_000_000, dtype=np.int32)),
        ):
            begun, used = time.perf_counter(), time.process_time()
            order = PackedOrder(drawn, capacity, seed=0)
            order.pack(0)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - used
            took = f"{seconds:.2f} s, {cpu:.2f} CPU s"
            print(f"max_length {capacity:>7,} {name:<10} {took}, {order.fill:.1%} full")


def open_large(records: int) -> None:
    """Seconds from nothing to the first batch of a large synthetic cache."""
    from launcher.data.cache import Index
    from launcher.data.prepare.writing import CacheWriter

    folder = Path(tempfile.mkdtemp(prefix="bench-open-"))
    rng = np.random.default_rng(0)
    with CacheWriter(folder / "cache") as writer:
        for first in range(0, records, 1 << 20):
            count = min(1 << 20, records - first)
            lengths = rng.integers(2, 13, count, dtype=np.int32)
            total = int(lengths.sum())
            lines = np.arange(first + 1, first + count + 1, dtype=np.int32)
            writer.append(
                np.zeros(total, np.int32),
                np.ones(total, np.uint8),
                lengths,
                np.stack([np.zeros(count, np.int32), lines], axis=1),
                np.ones(count, np.float32),
            )
        begun = time.perf_counter()
        writer.finish(Index(key="", files=["x"], format="text", tokenizer="", max_length=1024))
        print(f"finished {records:,} records in {time.perf_counter() - begun:.1f} s")
    script = (
        "import sys,time;from launcher.data.cache import TokenCache;"
        "from launcher.data.pack.mixture import make_order;"
        "from launcher.data.pack.loader import Loader;"
        "b=time.perf_counter();c=TokenCache.open(sys.argv[1]);o=make_order(c,1024,0);"
        "l=Loader(c,o,global_sequences=64,micro_batch=8,accumulation=8,rank=0,world_size=1);"
        "l.step(0);d=time.perf_counter();l.step(10**9);e=time.perf_counter();"
        "print(f'first batch {d-b:.3f} s, of a far step {e-d:.3f} s, {o.num_packs:,} packs')"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "cache")], check=True)
    shutil.rmtree(folder)


def memory(tokenizer_folder: str, records: int) -> None:
    """Peak resident memory of the reading process and its largest worker, at 1x and 10x."""
    peaks = []
    script = (
        "import sys,resource;from launcher.data.tokenizer import hide_torch;hide_torch();"
        "sys.path.insert(0,'tests/bench');import prepare;"
        "from pathlib import Path;"
        "c=prepare._config(Path(sys.argv[1]),sys.argv[2]);prepare._prepare(c);"
        "import shutil;shutil.rmtree(c.data.cache);"
        "k=lambda w:resource.getrusage(w).ru_maxrss>>10;"
        "print(k(resource.RUSAGE_SELF),k(resource.RUSAGE_CHILDREN))"
    )
    for times in (1, 10):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for i in range(records * times):
                question = {"role": "user", "content": f"what is {i}? " + "why " * (i % 60)}
                answer = {"role": "assistant", "content": f"it is {i}"}
                file.write(json.dumps({"messages": [question, answer]}) + "\n")
            file.flush()
            done = subprocess.run(
                [sys.executable, "-c", script, file.name, tokenizer_folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=True,
            )
            own, worker = done.stdout.split()
            print(f"{records * times:>9,} records: {own} MiB, largest worker {worker} MiB")
            peaks.append((int(own), int(worker)))
    print("10x:", ", ".join(f"{b / a:.1%}" for a, b in zip(*peaks, strict=True)), "of that of 1x")


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["encode", "packing", "open", "memory"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--records", type=int, default=0)
    options = parser.parse_args()
    if options.what == "encode":
        encode(options.data, options.tokenizer, options.rounds)
    elif options.what == "packing":
        packing()
    elif options.what == "open":
        open_large(options.records or 50_000_000)
    else:
        memory(options.tokenizer, options.records or 50_000)


if __name__ == "__main__":
    main()
