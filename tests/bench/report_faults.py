"""Known faults planted in copies of real data: how many of them the report finds, and what it says
about the originals.

usage: python tests/bench/report_faults.py [--chat TRAIN.jsonl TEST.jsonl]
           [--preference SOLUTIONS.jsonl] [--labelled CLASSES.json] [--out FOLDER]

--chat takes GSM8K's files (`question`, `answer`), --preference its model solutions (several
`solution`s with `is_correct`), --labelled CLINC150's JSON (`train` and `val`, lists of [text,
label]). Each is read once as it is and once with faults. A fault counts as found when its own rule
names its line; `others` are lines without a fault that this rule names in the copy, but not in
the original. With --out the inputs and reports stay there.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from launcher.config.compose import compose
from launcher.curate.report import report

NAMES = ("Ava", "Liam", "Noor", "Kenji", "Marta", "Pavel")
KEYS = ("AKIA{16}", "ghp" + "_{36}", "sk-proj-{40}", "hf_{34}")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
PHONES = ("+49 30 {3} {4}", "({3}) 555-{4}", "+44 20 7{3} {4}", "212-555-{4}", "call me at 030 {7}")


def longest(record):
    return max(("prompt", "answer"), key=lambda name: len(record[name]))


def changed(text, rng, edits):
    words = text.split(" ")
    for at in rng.sample(range(len(words)), min(edits, len(words))):
        words[at] = rng.choice(("quite", "seven", "before", "green", "other"))
    return " ".join(words)


def digits(rng, form):
    made = form
    for size in "23457":
        made = made.replace(
            f"{{{size}}}", str(rng.randrange(2 * 10 ** (int(size) - 1), 10 ** int(size)))
        )
    return made


def card(rng):
    number = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(sum(divmod(2 * d, 10)) if i % 2 == 0 else d for i, d in enumerate(number))
    text = "".join(map(str, [*number, -total % 10]))
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))


def key(rng):
    form = rng.choice(KEYS)
    size = int(form[form.index("{") + 1 : -1])
    return form[: form.index("{")] + "".join(rng.choices(LETTERS, k=size))


def said(what):
    """A fault that is put into a record, at its end."""
    return lambda record, rng: {**record, "prompt": f"{record['prompt']} {what(rng)}"}


def mangled(record, rng):
    text = record["prompt"].replace("'", "’").rstrip(".?! ") + " at the café – “now”?"
    return {**record, "prompt": text.encode().decode("cp1252", "ignore")}


def near(edits):
    def make(record, rng):
        return {**record, "prompt": changed(record["prompt"], rng, edits)}

    return make


IN_PLACE = {
    "mojibake": ("mojibake", mangled),
    "e-mail address": (
        "pii",
        said(lambda rng: f"Ask {rng.choice(NAMES).lower()}.{rng.randrange(99)}@post-nord.se now."),
    ),
    "phone number": ("pii", said(lambda rng: digits(rng, rng.choice(PHONES)))),
    "card number": ("pii", said(lambda rng: f"My card is {card(rng)}")),
    "key": ("secrets", said(key)),
    "zero-width or control character": (
        "control_characters",
        lambda record, rng: {
            **record,
            "prompt": record["prompt"].replace(" ", rng.choice((" \u200b", "\x08 ", "\ufffd ")), 1),
        },
    ),
    "empty answer": (
        "empty_answers",
        lambda record, rng: {**record, "answer": rng.choice(("", " ", "N/A", "null"))},
    ),
    "refusal": (
        "refusals",
        lambda record, rng: {
            **record,
            "answer": rng.choice(
                (
                    "I'm sorry, but I can't help with that.",
                    "As an AI language model, I cannot answer this.",
                    "I cannot fulfill this request.",
                )
            ),
        },
    ),
    "repetition": (
        "repetition",
        lambda record, rng: {
            **record,
            "answer": record["answer"] + " and then we add them again" * 60,
        },
    ),
    "HTML": (
        "markup",
        lambda record, rng: {
            **record,
            "answer": rng.choice(
                (
                    f"<p>{record['answer']}</p>",
                    record["answer"].replace(" ", "&nbsp;", 3),
                    record["answer"] + "<br/>",
                )
            ),
        },
    ),
    "3 MB": (
        "overlong",
        lambda record, rng: {
            **record,
            longest(record): " ".join(rng.choices(record["prompt"].split(), k=550_000)),
        },
    ),
}
#: Of pairs alone.
OF_PAIRS = {
    "equal answers": (
        "equal_answers",
        lambda record, rng: {**record, "rejected": record["answer"]},
    ),
    "white space apart": (
        "blank_differences",
        lambda record, rng: {**record, "rejected": record["answer"].replace(" ", "  ", 3)},
    ),
    "tied ratings": ("tied_ratings", lambda record, rng: {**record, "scores": (7, 7)}),
}
ADDED = {
    "exact copy": (
        "exact_duplicates",
        lambda record, rng: {
            **record,
            "prompt": record["prompt"].upper() if rng.random() < 0.5 else record["prompt"] + " ",
        },
    ),
    "one word changed": ("near_duplicates", near(1)),
    "two words changed": ("near_duplicates", near(2)),
    "other answer": (
        "conflicts",
        lambda record, rng: {**record, "answer": changed(record["answer"], rng, 20) + " 17"},
    ),
    "broken line": ("broken", lambda record, rng: record),
}
LEAKS = {
    "verbatim": lambda record, rng: record,
    "question inside other words": lambda record, rng: {
        **record,
        "prompt": f"Here is one for you. {record['prompt']} Show all steps.",
        "answer": "See above.",
    },
    "lightly paraphrased": lambda record, rng: {
        **record,
        "prompt": changed(record["prompt"], rng, 2),
        "answer": "It is 12.",
    },
}
#: faults that make no sense with a class as the answer, or with pairs.
NOT_LABELLED = ("empty answer", "refusal", "repetition", "HTML")
FEW = {"3 MB": 3, "key": 20, "card number": 20}


def chat(record):
    roles = ("user", "prompt"), ("assistant", "answer")
    return {"messages": [{"role": role, "content": record[name]} for role, name in roles]}


def pair(record):
    made = {"prompt": record["prompt"], "chosen": record["answer"], "rejected": record["rejected"]}
    return made | dict(
        zip(("score_chosen", "score_rejected"), record.get("scores", ()), strict=False)
    )


def labelled(record):
    return {"text": record["prompt"], "label": record["answer"]}


def plant(records, held, rng, count, layout):
    """(lines, {fault: (rule, line numbers)}) of a copy with faults."""
    records, places = list(records), {}
    left = rng.sample(range(len(records)), len(records))
    faults = IN_PLACE | (OF_PAIRS if layout is pair else {})
    for name, (rule, make) in faults.items():
        if layout is labelled and name in NOT_LABELLED:
            continue
        chosen = [left.pop() for _ in range(FEW.get(name, count))]
        for at in chosen:
            records[at] = make(records[at], rng)
        places[name] = rule, [at + 1 for at in chosen]
    untouched = list(left)
    added = []
    for name, (rule, make) in ADDED.items():
        for _ in range(count):
            record = records[untouched.pop()]
            if name == "other answer" and layout is pair:
                made = {**record, "answer": record["rejected"], "rejected": record["answer"]}
            elif name == "other answer" and layout is labelled:
                made = {**record, "answer": rng.choice([r["answer"] for r in records])}
            else:
                made = make(record, rng)
            added.append((name, rule, made))
    if layout is labelled:
        classes = sorted({record["answer"] for record in records})
        wrong = [untouched.pop() for _ in range(3 * count)]
        for at in wrong:
            others = [each for each in classes if each != records[at]["answer"]]
            records[at] = {**records[at], "answer": rng.choice(others)}
        places["wrong label"] = "label_noise", [at + 1 for at in wrong]
    for name, make in LEAKS.items() if held else ():
        added += [(name, "leakage", make(r, rng)) for r in rng.sample(held, count)]
    rng.shuffle(added)
    lines = [json.dumps(layout(record), ensure_ascii=False) for record in records]
    for name, rule, record in added:
        line = json.dumps(layout(record), ensure_ascii=False)
        lines.append(line[: len(line) * 2 // 3] if name == "broken line" else line)
        places.setdefault(name, (rule, []))[1].append(len(lines))
    return lines, places


def look(folder, name, lines, held):
    """rule -> lines that it names, and the report."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    words = [f"data.train={path}", "data.report.examples=100000", "data.report.sample=2000"]
    words += [f"data.validation={held}"] if held else ["data.validation_share=0"]
    made = report.build(compose.compose([*words, f"data.cache={folder / 'cache'}"]))
    (folder / f"{name}.json").write_text(json.dumps(made, indent=1))
    shown = {
        rule["name"]: {
            int(example["where"].rpartition(":")[2])
            for example in rule["examples"]
            if example["where"].startswith(str(path))
        }
        for rule in made["rules"]
    }
    return shown, made


def measure(folder, name, layout, records, held, count):
    rng = random.Random(0)
    evaluation = None
    if held:
        evaluation = folder / f"{name}-held.jsonl"
        evaluation.write_text("".join(f"{json.dumps(layout(record))}\n" for record in held))
    clean = [json.dumps(layout(record), ensure_ascii=False) for record in records]
    before, made = look(folder, f"{name}-clean", clean, evaluation)
    print(f"\n{name}: {len(records):,} records; the original: {made['verdict']}")
    for rule in made["rules"]:
        if rule["verdict"] in ("warn", "fail") or (rule["count"] and rule["name"] in before):
            print(f"  {rule['verdict']:<5} {rule['name']:<18} {rule['found']}")
    lines, places = plant(records, held, rng, count, layout)
    after, _ = look(folder, f"{name}-planted", lines, evaluation)
    everything = {line for _, at in places.values() for line in at}
    print(f"  {'fault':<32} {'rule':<18} planted  found  others")
    for fault, (rule, at) in places.items():
        others = after[rule] - everything - before[rule]
        # A preference without an answer is no record at all.
        named = after[rule] | (after["broken"] if rule == "empty_answers" else set())
        found = len(named & set(at))
        print(f"  {fault:<32} {rule:<18} {len(at):>7}  {found:>5}  {len(others):>6}")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def questions(path):
    return [{"prompt": r["question"], "answer": r["answer"]} for r in read_lines(path)]


def pairs(path):
    made = []
    for record in read_lines(path):
        solutions = [value for value in record.values() if isinstance(value, dict)]
        right = [each["solution"] for each in solutions if each["is_correct"]]
        wrong = [each["solution"] for each in solutions if not each["is_correct"]]
        if right and wrong:
            made.append({"prompt": record["question"], "answer": right[0], "rejected": wrong[0]})
    return made


def classes(path):
    data = json.loads(path.read_text())
    return [
        [{"prompt": t, "answer": label} for t, label in data[part]] for part in ("train", "val")
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chat", nargs=2, type=Path, metavar=("TRAIN", "TEST"))
    parser.add_argument("--preference", type=Path)
    parser.add_argument("--labelled", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.out or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if options.chat:
            train, test = map(questions, options.chat)
            measure(folder, "chat", chat, train, test, 40)
        if options.preference:
            measure(folder, "preference", pair, pairs(options.preference), None, 20)
        if options.labelled:
            measure(folder, "labelled", labelled, *classes(options.labelled), 50)


if __name__ == "__main__":
    main()
