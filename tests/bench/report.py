"""Near-duplicates against comparing all pairs, and a whole report on a million short records.

usage: python tests/bench/report.py TEXTS.jsonl... [--thresholds 0.8 0.6] [--sample 6000]
           [--records 1000000] [--workers 2]

Each line of TEXTS is an object or list; what is compared is all strings in it. To a sample of them
come copies, a sixth as many, in which up to five words were changed, dropped or put in. A record
counts as found when it is in a cluster and not its first: that is what `launcher data clean` drops;
the truth is the same, from the exact similarity of all pairs. Then, unless --records is 0, that
many short records are made of the same words, with a tenth of known faults among them, and
`launcher data report` runs on them: time, and the peak memory of all its processes together.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from launcher.curate.records.sketch import Sketcher, shingle_set
from launcher.curate.rules import duplicates

OPS = ("change", "drop", "insert")


def strings(value):
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inside for text in strings(part)]


def edited(text, rng, edits):
    words = text.split(" ")
    for _ in range(edits):
        at, op = rng.randrange(len(words)), rng.choice(OPS)
        if op == "drop" and len(words) > 3:
            del words[at]
        else:
            words[at : at + (op == "change")] = [rng.choice(words)]
    return " ".join(words)


def pairs_of(texts, threshold):
    """All (i, j), i < j, that are alike by the threshold, by their shared shingles."""
    sets = [shingle_set(text) for text in texts]
    sizes = np.array([len(each) for each in sets])
    values = np.concatenate(sets)
    order = np.argsort(values, kind="stable")
    owners = np.repeat(np.arange(len(sets)), sizes)[order]
    begins = np.flatnonzero(np.diff(values[order], prepend=values[order][0] ^ np.uint64(1)))
    shared = np.zeros((len(sets), len(sets)), np.uint16)
    for begin, end in zip(begins, [*begins[1:], len(owners)], strict=True):
        if end > begin + 1:
            having = owners[begin:end]
            shared[np.ix_(having, having)] += 1
    found = {}
    for i in range(len(sets)):
        others = np.flatnonzero(shared[i, i + 1 :]) + i + 1
        union = sizes[i] + sizes[others] - shared[i, others]
        found[i] = others[shared[i, others] >= threshold * union]
    return found


def dropped_by_hand(texts, threshold):
    """All that resemble a record that was kept before them."""
    dropped = set()
    for i, others in pairs_of(texts, threshold).items():
        if i not in dropped:
            dropped.update(others.tolist())
    return dropped


def accuracy(texts, threshold, read):
    begun = time.perf_counter()
    signatures = Sketcher()(texts)
    sketched = time.perf_counter()
    clusters = duplicates.near(signatures, threshold, read)
    found = {int(i) for cluster in clusters for i in cluster[1:]}
    times = sketched - begun, time.perf_counter() - sketched
    true = dropped_by_hand(texts, threshold)
    right = len(found & true)
    return {
        "true": len(true),
        "found": len(found),
        "recall": right / max(1, len(true)),
        "precision": right / max(1, len(found)),
        "sketch_s": times[0],
        "near_s": times[1],
    }


def synthetic(path, count, rng, vocabulary):
    """Short chats; one in ten is a copy, an edited copy, an open contradiction or has an e-mail."""
    with open(path, "w") as file:
        last = []
        for i in range(count):
            question = " ".join(rng.choices(vocabulary, k=rng.randint(6, 30)))
            answer = " ".join(rng.choices(vocabulary, k=rng.randint(4, 40)))
            if last and i % 10 == 0:
                question, answer = rng.choice(last)
                fault = i // 10 % 4
                if fault == 1:
                    answer = edited(answer, rng, 1)
                elif fault == 2:
                    answer = "something else"
                elif fault == 3:
                    answer += f" write to {rng.choice(vocabulary)}@example.org"
            last = [*last[-999:], (question, answer)]
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def memory_of(group):
    """Bytes held by all processes of a group, what they share counted once (PSS)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total * 1024


def whole_report(path, folder, workers):
    command = [sys.executable, "-m", "launcher.cli", "data", "report", f"data.train={path}"]
    command += ["data.validation_share=0.001", f"data.workers={workers}", "-o", str(folder)]
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cpu_before = cpu_of_children()
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, memory_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    if not (folder / "report.json").exists():
        raise SystemExit(f"no report came of it: exit code {process.returncode}")
    return time.perf_counter() - begun, cpu_of_children() - cpu_before, peak


def cpu_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.8, 0.6])
    parser.add_argument("--sample", type=int, default=6000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rng = random.Random(0)
    lines = [line for file in options.files for line in file.read_text().splitlines() if line]
    texts = ["\n".join(strings(json.loads(line))) for line in lines]
    texts = [text for text in texts if text.strip()]
    sample = rng.sample(texts, min(options.sample, len(texts)))
    planted = [
        edited(text, rng, rng.randint(0, 5)) for text in rng.sample(sample, len(sample) // 6)
    ]
    print(f"{len(sample):,} texts and {len(planted):,} edited copies")
    print("threshold  similarity  true  found  recall  precision  sketch s  near s")
    every = [*sample, *planted]
    for threshold in options.thresholds:
        for name, read in (("estimated", None), ("checked", lambda rows: [every[i] for i in rows])):
            row = accuracy(every, threshold, read)
            print(
                f"{threshold:<9}  {name:<10}  {row['true']:>4}  {row['found']:>5}"
                f"  {row['recall']:.4f}  {row['precision']:.4f}     {row['sketch_s']:8.2f}"
                f"  {row['near_s']:6.2f}"
            )
    if options.records:
        vocabulary = sorted({word for text in sample for word in text.split()})
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "chats.jsonl"
            synthetic(path, options.records, rng, vocabulary)
            size = path.stat().st_size / 2**20
            seconds, cpu, peak = whole_report(path, Path(name) / "report", options.workers)
        print(
            f"report on {options.records:,} records ({size:.0f} MiB), {options.workers} workers:"
            f" {seconds:.0f} s, {cpu:.0f} CPU seconds, peak memory {peak / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
