"""From numbers to verdicts: each rule counts, compares with its limits and names records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launcher.curate.records import profiles
from launcher.curate.records.marks import BITS
from launcher.curate.records.texts import plural
from launcher.curate.rules import judged, labels, leakage
from launcher.curate.rules.diversity import effective
from launcher.curate.rules.duplicates import Indices, conflicting, exact, near
from launcher.curate.rules.languages import Languages
from launcher.curate.rules.leakage import Leaks
from launcher.curate.scan.inputs import TRAIN, VALIDATION
from launcher.curate.scan.scan import Scan
from launcher.data.chat.masking import kinds_of_bits
from launcher.data.sources import source_name

#: An answer of fewer characters is tiny, where the usual one is this many times longer.
TINY, TINY_FACTOR = 3, 10
NOT_JUDGED, NO_PAIRS = "no answer is judged", "there are no pairs of answers"
NO_VERDICTS = "no answer is judged by itself"
#: Bytes that a token stands for at most, on average: what is longer is too long for any tokenizer.
TOKEN_BYTES = 8


@dataclass(slots=True)
class Result:
    """What a rule found. `rows` are training records to show, `places` what is no record."""

    count: int
    total: int
    found: str
    rows: list[tuple[int, str]] = field(default_factory=list)
    """Row and why, or "" where the mark of the record says it."""
    places: list[tuple[str, str, str]] = field(default_factory=list)
    """file:line, text and why."""
    share: float | None = None
    """Where it is not count / total."""
    skipped: bool = False


@dataclass(slots=True)
class Evidence:
    """What several rules and the page need."""

    scan: Scan
    exact: list[Indices]
    near: list[Indices]
    conflicts: list[Indices]
    leaks: Leaks
    suspects: list[labels.Suspect]
    languages: Languages

    @classmethod
    def of(cls, scan: Scan, languages: Languages) -> Evidence:
        """Look for what takes more than one record to see."""
        train = scan.train

        def texts(rows: Indices) -> Iterator[str]:
            return (record.text for _, record in scan.stream(rows.tolist()))

        return cls(
            scan=scan,
            exact=exact(train.whole),
            near=near(train.signatures, scan.config.data.report.near_duplicate, texts),
            conflicts=conflicting(train.question, train.reply),
            leaks=leakage.find(train, scan.held, scan.config.data.report),
            suspects=labels.suspects(scan),
            languages=languages,
        )


def evaluate(evidence: Evidence) -> dict[str, Result]:
    """The result of every rule, those of the profile last."""
    found = {name: rule(evidence) for name, rule in _RULES.items()}
    for name in BITS:
        found.setdefault(name, _marked(evidence, name))
    if evidence.scan.profile:
        found |= _profile(evidence.scan)
    return found


def near_only(evidence: Evidence) -> Iterator[tuple[Indices, Indices]]:
    """Clusters of near-duplicates that are more than copies, and in each the records that differ
    from all before them."""
    for cluster in evidence.near:
        _, first = np.unique(evidence.scan.train.whole[cluster], axis=0, return_index=True)
        if len(first) > 1:
            yield cluster, cluster[np.sort(first)[1:]]


def _broken(evidence: Evidence) -> Result:
    scan, held = evidence.scan, evidence.scan.held.table
    # A held-out record of the training data is judged with the others there.
    beside = [entry for entry in held.bad if scan.inputs[entry.file].split == VALIDATION]
    bad = [entry for entry in (*scan.train.bad, *beside) if entry.rule == "broken"]
    found = plural(len(bad), "record") + " cannot be used"
    reasons = Counter(re.split("[:(;]| at ", entry.found)[0].strip() for entry in bad).most_common(
        1
    )
    places = [
        (f"{scan.inputs[entry.file].name}:{entry.line}", entry.hint, entry.found) for entry in bad
    ]
    found += f", mostly: {reasons[0][0]}" if bad else ""
    return Result(len(bad), scan.train.read + len(beside), found, places=places)


def _refused(name: str, found: str) -> Callable[[Evidence], Result]:
    """Records that are refused for a reason with a rule of its own."""

    def rule(evidence: Evidence) -> Result:
        scan = evidence.scan
        if not judged.are_judged(scan.train):
            return Result(0, 0, NOT_JUDGED, skipped=True)
        bad = [entry for entry in scan.train.bad if entry.rule == name]
        places = [(f"{scan.inputs[e.file].name}:{e.line}", e.hint, e.found) for e in bad]
        return Result(
            len(bad), scan.train.read, f"{plural(len(bad), 'record')} {found}", places=places
        )

    return rule


def _blank_differences(evidence: Evidence) -> Result:
    if not judged.num_pairs(evidence.scan.train):
        return Result(0, 0, NO_PAIRS, skipped=True)
    return _marked(evidence, "blank_differences")


def _length_bias(evidence: Evidence) -> Result:
    bias = judged.length_bias(evidence.scan.train)
    if bias is None:
        return Result(0, 0, NO_PAIRS, skipped=True)
    low, high = bias.interval
    found = (
        f"the longer answer is chosen in {bias.longer:.1%} of {plural(bias.pairs, 'pair')}, the "
        f"shorter in {bias.shorter:.1%}; who goes by length alone is right in {bias.score:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%})"
    )
    return Result(round(bias.score * bias.pairs), bias.pairs, found, share=low)


def _one_sided(evidence: Evidence) -> Result:
    prompts = judged.prompts(evidence.scan.train)
    if prompts is None:
        return Result(0, 0, NO_VERDICTS, skipped=True)
    total, good, bad = prompts
    found = f"of {plural(total, 'prompt')} {good:,} have good answers alone, {bad:,} bad ones alone"
    return Result(good + bad, total, found)


def _verdict_balance(evidence: Evidence) -> Result:
    verdicts = evidence.scan.train["verdict"]
    good, bad = int((verdicts == 1).sum()), int((verdicts == 0).sum())
    if not good + bad:
        return Result(0, 0, NO_VERDICTS, skipped=True)
    found = f"{plural(good, 'good answer')}, {plural(bad, 'bad one')}"
    return Result(max(good, bad), good + bad, found)


def _chosen_held_out(evidence: Evidence) -> Result:
    scan, held = evidence.scan, evidence.scan.held.table
    chosen = judged.chosen(scan.train)
    if not len(chosen):
        return Result(0, 0, NOT_JUDGED, skipped=True)
    if not len(held):
        return Result(
            0, 0, "nothing is held out: data.validation, data.report.benchmarks", skipped=True
        )
    pairs = judged.held_out(scan.train, held)
    rows = [
        (row, f"its better answer is in the evaluation data: {scan.where(held, other)}")
        for row, other in pairs
    ]
    found = f"{len(rows):,} of {plural(len(chosen), 'chosen answer')} held out too"
    return Result(len(rows), len(chosen), found, rows)


def _marked(evidence: Evidence, name: str) -> Result:
    train = evidence.scan.train
    rows = np.flatnonzero(train["flags"] & BITS[name])
    return Result(len(rows), len(train), plural(len(rows), "record"), [(int(i), "") for i in rows])


def _tiny(evidence: Evidence) -> Result:
    train = evidence.scan.train
    sizes, empty = train["answer"], train["flags"] & BITS["empty_answers"] > 0
    usual = float(np.median(sizes)) if len(sizes) else 0.0
    tiny = (sizes < TINY) & ~empty if usual >= TINY * TINY_FACTOR else np.zeros(len(sizes), bool)
    rows = [(int(i), f"{sizes[i]} characters; half have over {usual:,.0f}") for i in _where(tiny)]
    return Result(
        len(rows), len(train), plural(len(rows), "answer") + " of 1 or 2 characters", rows
    )


def _overlong(evidence: Evidence) -> Result:
    train, most = evidence.scan.train, evidence.scan.config.data.max_length
    if evidence.scan.tokenizer is None:
        least = TOKEN_BYTES * most
        over = _where(train["bytes"] > least)
        rows = [(i, f"{train['bytes'][i]:,} bytes") for i in over]
        found = f"{plural(len(rows), 'record')} over {least:,} bytes, too many for {most:,} tokens"
        return Result(len(rows), len(train), found, rows)
    over = _where(train["tokens"] > most)
    lost = int((train["tokens"][over].astype(np.int64) - most).sum())
    rows = [(i, f"{train['tokens'][i]:,} tokens") for i in over]
    found = f"{plural(len(rows), 'record')} over {most:,} tokens, {lost:,} tokens beyond it"
    return Result(len(rows), len(train), found, rows)


def _left_out(evidence: Evidence) -> Result:
    train = evidence.scan.train
    if evidence.scan.tokenizer is None:
        return Result(0, 0, "no tokenizer is given, so there is no chat template", skipped=True)
    bits = train["left_out"]
    kinds = {i: " and ".join(kinds_of_bits(int(bits[i]))) for i in _where(bits > 0)}
    rows = [(i, f"the chat template leaves out {kind}") for i, kind in kinds.items()]
    found = plural(len(rows), "record") + " of which the chat template leaves something out"
    counts = Counter(kind for i in kinds for kind in kinds_of_bits(int(bits[i]))).most_common()
    found += f" ({', '.join(f'{kind} {count:,}' for kind, count in counts)})" * bool(counts)
    return Result(len(rows), len(train), found, rows)


def _exact(evidence: Evidence) -> Result:
    scan = evidence.scan
    rows = [
        (int(i), f"the same as {scan.where(scan.train, cluster[0])}")
        for cluster in evidence.exact
        for i in cluster[1:]
    ]
    return Result(len(rows), len(scan.train), plural(len(rows), "record") + " said before", rows)


def _near(evidence: Evidence) -> Result:
    scan = evidence.scan
    rows = [
        (int(i), f"nearly the same as {scan.where(scan.train, cluster[0])}")
        for cluster, later in near_only(evidence)
        for i in later
    ]
    found = plural(len(rows), "record") + " much like an earlier one"
    return Result(len(rows), len(scan.train), found, sorted(rows))


def _conflicts(evidence: Evidence) -> Result:
    scan = evidence.scan
    rows = [
        (int(i), judged.contradiction(scan.train, int(i), scan.where(scan.train, group[0])))
        for group in evidence.conflicts
        for i in group[scan.train.reply[group] != scan.train.reply[group[0]]]
    ]
    count = sum(map(len, evidence.conflicts))
    asked = plural(len(evidence.conflicts), "question")
    found = f"{asked} with several answers" + f", in {plural(count, 'record')}" * bool(count)
    return Result(count, len(scan.train), found, rows)


def _leakage(evidence: Evidence) -> Result:
    scan, leaks = evidence.scan, evidence.leaks
    held = scan.held.table
    if not len(held):
        found = "nothing is held out: data.validation, data.report.benchmarks"
        return Result(0, 0, found, skipped=True)
    leaked = np.unique(leaks.evaluation)
    rows: dict[int, str] = {}
    for row, other in zip(leaks.train.tolist(), leaks.evaluation.tolist(), strict=True):
        rows.setdefault(row, f"is in the evaluation data: {scan.where(held, other)}")
    found = f"{len(leaked):,} of {plural(len(held), 'evaluation record')} in training"
    unread = sum(scan.inputs[entry.file].split != TRAIN for entry in held.bad)
    found += f"; {unread:,} more could not be read" * bool(unread)
    return Result(len(leaked), len(held), found, sorted(rows.items()))


def _label_noise(evidence: Evidence) -> Result:
    train = evidence.scan.train
    labelled = int((train.labels >= 0).sum())
    if not labelled:
        return Result(0, 0, "there are no labels", skipped=True)
    rows = [(suspect.row, f"looks like {suspect.likely!r}") for suspect in evidence.suspects]
    return Result(len(rows), labelled, plural(len(rows), "label") + " that others contradict", rows)


def _language_mix(evidence: Evidence) -> Result:
    languages = evidence.languages
    if not languages.sampled:
        return Result(0, 0, "no record is long enough to tell", skipped=True)
    names = ", ".join(f"{name} {count:,}" for name, count in languages.counts.most_common(5))
    rows = [(row, f"is in {name}") for row, name in languages.odd]
    return Result(len(rows), languages.sampled, f"of {languages.sampled:,} sampled: {names}", rows)


def _class_balance(evidence: Evidence) -> Result:
    train = evidence.scan.train
    sizes = np.bincount(train.labels[train.labels >= 0], minlength=len(train.label_names))
    if len(sizes) < 2:
        found = "there is one label" if len(sizes) else "there are no labels"
        return Result(0, 0, found, skipped=True)
    even = effective(sizes.tolist())
    small, large = int(sizes.argmin()), int(sizes.argmax())
    names = train.label_names
    found = f"{len(sizes):,} classes, as even as {even:.1f}: "
    if sizes[small] == sizes[large]:
        found += f"each has {plural(int(sizes[small]), 'record')}"
    else:
        found += f"{names[small]!r} has {plural(int(sizes[small]), 'record')}, "
        found += f"{names[large]!r} has {sizes[large]:,}"
    rows = [(int(i), "of the smallest class") for i in _where(train.labels == small)]
    return Result(
        int(sizes.sum()), int(sizes.sum()), found, rows, share=max(0.0, 1 - even / len(sizes))
    )


def _source_balance(evidence: Evidence) -> Result:
    sizes = sources(evidence.scan)
    if len(sizes) < 2:
        return Result(0, 0, "there is one source", skipped=True)
    name, largest = sizes.most_common(1)[0]
    found = f"{name} is {largest / sizes.total():.0%} of {plural(sizes.total(), 'record')}"
    return Result(largest, sizes.total(), found)


def sources(scan: Scan) -> Counter[str]:
    """Records of each source that the config names."""
    files = np.bincount(scan.train["file"], minlength=len(scan.inputs))
    counts: Counter[str] = Counter()
    for entry in scan.inputs:
        if entry.split == TRAIN:
            counts[entry.group] += int(files[entry.file])
    return counts


def _profile(scan: Scan) -> dict[str, Result]:
    train = scan.train
    found: dict[str, Result] = {}
    for name in profiles.FIXES[scan.profile or ""]:
        hits = [breach for breach in train.breaches if breach[2] == name]
        records = len({breach[:2] for breach in hits})
        places = [(f"{scan.inputs[file].name}:{line}", "", why) for file, line, _, why in hits]
        found[name] = Result(records, train.read, plural(records, "record"), places=places)
    found["openai_file"] = _openai_file(scan)
    return found


def _openai_file(scan: Scan) -> Result:
    places = []
    counts = Counter(scan.train["file"].tolist()) + Counter(b.file for b in scan.train.bad)
    files = [entry for entry in scan.inputs if entry.split == TRAIN]
    for entry in files:
        name = source_name(entry.source)
        if counts[entry.file] < profiles.MIN_EXAMPLES:
            why = f"{plural(counts[entry.file], 'example')}; {profiles.MIN_EXAMPLES} are needed"
            places.append((name, "", why))
        if isinstance(entry.source, Path):
            if entry.source.suffix.lower() != ".jsonl":
                places.append((name, "", "no .jsonl file"))
            if entry.source.stat().st_size > profiles.MAX_FILE_BYTES:
                places.append((name, "", "too large a file"))
    return Result(
        len(places), len(files), plural(len(places), "fault") + " of the files", places=places
    )


def _where(condition: Any) -> Sequence[int]:
    rows: list[int] = np.flatnonzero(condition).tolist()
    return rows


_RULES: dict[str, Callable[[Evidence], Result]] = {
    "broken": _broken,
    "equal_answers": _refused("equal_answers", "whose answers are the same"),
    "tied_ratings": _refused("tied_ratings", "whose answers are rated the same"),
    "tiny_answers": _tiny,
    "overlong": _overlong,
    "left_out": _left_out,
    "exact_duplicates": _exact,
    "near_duplicates": _near,
    "conflicts": _conflicts,
    "blank_differences": _blank_differences,
    "length_bias": _length_bias,
    "one_sided_prompts": _one_sided,
    "verdict_balance": _verdict_balance,
    "chosen_held_out": _chosen_held_out,
    "label_noise": _label_noise,
    "leakage": _leakage,
    "language_mix": _language_mix,
    "class_balance": _class_balance,
    "source_balance": _source_balance,
}
