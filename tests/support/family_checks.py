"""What a small model computes under the launcher against what plain transformers computes.

A check returns nothing where they are equal and raises `Different` with a number where not. What
the launcher refuses comes as its `ConfigError`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from launcher.config.compose import compose
from launcher.config.derive import plan as plans
from launcher.config.schema import Config, variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.errors import ConfigError, LauncherError
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import Row, make_row, rectangles
from launcher.data.tokenizer import load_tokenizer, padding_of
from launcher.evals.decoding import Decoding
from launcher.evals.generation import find_stop_tokens, generate_records, read
from launcher.evals.records import TokenizedPrompt
from launcher.health.isolation import isolate
from launcher.health.selftest import require_trainable
from launcher.model.export import Kind, Trained, export
from launcher.model.fragments import Fragment, FragmentReader, write_fragments
from launcher.model.load import load_model
from launcher.model.rebuild import load_base, with_adapters
from launcher.model.sequence_head import SequenceHead
from launcher.model.verify import open_export, verify
from launcher.objectives.base import Objective
from launcher.track import meters
from support import caches
from support.ranks import ROOT, run_ranks

#: Tokens of the documents: some longer than any window of a small model, and rows of them as many
#: as its vectors are wide, so that no size tells which dimension counts tokens.
LENGTHS = (8, 40, 16)
#: Learned tokens at the end of each.
LEARNED = (3, 30, 9)
LABELS = (["a"], ["b"], ["a"])

LORA = ("peft=lora", "peft.rank=4")

#: Largest difference of a loss in nats, of a gradient as a share of its tensor's largest element,
#: of logits as a share of their largest element. What is computed in another order differs by less.
LOSS, GRADIENT, LOGITS = 1e-4, 1e-3, 1e-4

#: How documents may be laid out, and the words for it, the first that is not refused.
LAYOUTS = {
    "packed": [["data.packing=true"]],
    "unpacked": [
        ["data.packing=false"],
        ["data.packing=false", "model.attention=sdpa"],
        ["data.packing=false", "model.attention=eager"],
    ],
}


class Different(Exception):
    """The launcher computes something else than plain transformers."""


class NotCausal(Exception):
    """In plain transformers a token sees later ones."""


@dataclass(slots=True)
class Expected:
    """What plain transformers makes of the records, each by itself."""

    losses: list[Tensor]
    gradients: dict[str, Tensor | None]
    """Of the sum of all losses."""
    training: bool
    """Whether gradients are those of training mode; not so where that draws random numbers."""


class Unusable(Exception):
    """Plain transformers raises as well."""


@dataclass(slots=True)
class Subject:
    """A base model's folder, its data, and what plain transformers makes of them."""

    base: Path
    work: Path
    head: str
    cache: TokenCache
    expected: dict[bool, Expected] = field(default_factory=dict)
    """By whether there are adapters."""
    moved: dict[tuple[str, ...], Moved] = field(default_factory=dict)
    """After training, by the words of the config."""

    @property
    def classifies(self) -> bool:
        """Whether it has a head for classes."""
        return self.head == "classes"

    def config(self, words: list[str]) -> Config:
        """The launcher's config of this model under these words."""
        about = [f"model.name={self.base}", "data.train=records.jsonl", "data.max_length=128"]
        if self.classifies:
            about += ["objective=classify", "data=classification", "eval=classify"]
        config, problems = compose.try_compose(["model=hf", *about, *words], sources=_sources())
        if problems:
            raise ConfigError(problems)
        return config

    def objective(self, config: Config) -> Objective:
        """The objective, as the training loop settles it."""
        made: Objective = variants.objective(config.objective)
        made.settle(config, self.cache, None)
        made.spec = made.sequence_head(padding_of(load_tokenizer(config.model)))
        return made


def subject(base: Path, work: Path, head: str) -> Subject:
    """The model in `base`, with a cache of three records in `work`, closed by what the tokenizer
    puts behind a text."""
    generator = torch.Generator().manual_seed(3)
    records = []
    closing = [token for token in AutoTokenizer.from_pretrained(base)("a").input_ids if token < 7]
    for length, learned in zip(LENGTHS, LEARNED, strict=True):
        tokens = torch.randint(7, 250, (length - len(closing),), generator=generator).tolist()
        tokens += closing
        records.append((tokens, [0] * (length - learned) + [1] * learned))
    labels = LABELS if head == "classes" else None
    cache = caches.write(work / "cache", records, labels=labels)
    return Subject(base, work, head, cache)


@functools.cache
def _sources() -> compose.Sources:
    return compose.Sources()


@dataclass(slots=True)
class Started:
    """A model as the training loop has it before its first step."""

    model: Any
    head: Any
    config: Config
    objective: Objective
    layout: list[str]
    """How documents are kept apart, and what the launcher says of it."""


def start(one: Subject, words: list[str]) -> Started:
    """What `launcher.train.setup` does, without an engine."""
    config = one.config(words)
    objective = one.objective(config)
    plan = plans.make(config, world_size=1, has_gpu=False, train_packs=2)
    tokenizer = load_tokenizer(config.model)
    torch.manual_seed(config.seed)
    model: Any = load_model(config.model, plan, len(tokenizer), None, objective.spec)
    if objective.spec is not None:
        objective.spec = replace(objective.spec, fresh=model.fresh_modules)
    if config.peft.name != "none":
        method = PEFT_METHODS.load(config.peft.name)
        model = method(model, config.peft, objective.spec and objective.spec.fresh)
    head = objective.head(model)
    notes = isolate(head, model.eval(), model, one.cache, torch.device("cpu"), trains=True)
    require_trainable(objective, head, model, one.cache, torch.device("cpu"))
    layout = ["side by side" if head.isolates else "padded", *notes]
    model.train()
    return Started(model, head, config, objective, layout)


def plain(one: Subject, head: SequenceHead | None, source: Path | None = None) -> Any:
    """The model as plain transformers opens it."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if head is not None:
        from launcher.model.classifier import open_classifier

        model, _ = open_classifier(source or one.base, head, dtype=torch.float32)
    else:
        opener = AutoModelForImageTextToText if one.head == "images" else AutoModelForCausalLM
        model = opener.from_pretrained(source or one.base, dtype=torch.float32)
    model.config.use_cache = False
    return model


def alone(one: Subject, model: Any, record: int) -> tuple[Tensor, Tensor]:
    """Logits at the targets of a record by itself, and the targets, by plain transformers."""
    row = make_row(one.cache, [record])
    logits = model(input_ids=row.input_ids[None]).logits[0].float()
    if one.classifies:
        return logits[None], row.columns["label"]
    return logits[row.target_index], row.targets


def alone_losses(one: Subject, model: Any) -> list[Tensor]:
    """Losses of the targets of every record, each record by itself."""
    pieces = [alone(one, model, record) for record in range(len(LENGTHS))]
    return [cross_entropy(logits, targets, reduction="none") for logits, targets in pieces]


def losses_of(began: Started, row: Row) -> Tensor:
    """The launcher's losses of the targets, or texts, of a row, without gradients."""
    if began.head.keeps_logits:
        losses: Tensor = began.head.score(began.model, row)[0]
        return losses
    outputs = began.head.outputs(began.model, row).detach()
    return cross_entropy(outputs, row.columns["label"], reduction="none")


def check_sense(one: Subject) -> None:
    """That the model is causal in plain transformers, and its tokens matter to later ones."""
    if one.classifies:
        return
    model = plain(one, None).eval()
    tokens = make_row(one.cache, [1]).input_ids[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits[0].float()
        last, first = tokens.clone(), tokens.clone()
        last[0, -1] = first[0, 0] = 7
        changed = float((model(input_ids=last).logits[0].float() - before)[:-1].abs().max())
        moved = float((model(input_ids=first).logits[0].float() - before)[1:].abs().max())
    if changed > 1e-3:
        raise NotCausal(f"the last token moves earlier logits by {changed:.1g}")
    if moved < 1e-3:
        raise AssertionError(f"the first token moves later logits by {moved:.1g} only")


def expect(one: Subject, began: Started) -> Expected:
    """What plain transformers makes of the records, with the trained weights of `began`."""
    adapted = began.config.peft.name != "none"
    if adapted not in one.expected:
        reference = plain(one, began.objective.spec)
        if adapted:
            fresh = began.objective.spec and began.objective.spec.fresh
            method = PEFT_METHODS.load(began.config.peft.name)
            reference = method(reference, began.config.peft, fresh)
        copy_trained(began.model, reference)
        with torch.no_grad():
            losses = alone_losses(one, reference.eval())
            first, again = (torch.cat(alone_losses(one, reference.train())) for _ in range(2))
        training = torch.equal(first, again)
        torch.cat(alone_losses(one, reference.train(training))).sum().backward()
        gradients = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
        one.expected[adapted] = Expected(losses, gradients, training)
    return one.expected[adapted]


def check_loss(one: Subject, began: Started, rows: list[list[int]]) -> None:
    """Losses of the base in rows of these records, those of every target and their sum."""
    expected = expect(one, began).losses
    began.model.eval()
    for row in [part for records in rows for part in laid_out(one, began, records)]:
        wanted = torch.cat([expected[record] for record in row.records])
        losses = losses_of(began, row)
        compare("loss of a target", losses, wanted, LOSS * max(1.0, float(wanted.max())))
        total = began.objective.loss(began.head, began.model, row).total.detach()
        compare("loss of a row", total, wanted.sum(), LOSS * max(1.0, float(wanted.sum())))


def laid_out(one: Subject, began: Started, records: list[int]) -> list[Row]:
    """The records as the training loop gives them to the head."""
    row = make_row(one.cache, records)
    return [row] if began.head.isolates or began.head.pads else rectangles(row, equal=True)


def check_gradients(one: Subject, began: Started, rows: list[list[int]]) -> None:
    """Gradients of one step over these rows, of all that is trained, as plain PyTorch has them."""
    expected = expect(one, began)
    began.model.train(expected.training)
    began.model.zero_grad()
    total = 0.0
    for row in [part for records in rows for part in laid_out(one, began, records)]:
        loss = began.objective.loss(began.head, began.model, row).total
        loss.backward()
        total += float(loss.detach())
    wanted = torch.cat(expected.losses).sum()
    compare("loss in training", torch.tensor(total), wanted, LOSS * max(1.0, float(wanted)))
    known = [gradient for gradient in expected.gradients.values() if gradient is not None]
    largest = max(float(gradient.abs().max()) for gradient in known)
    for name, parameter in began.model.named_parameters():
        if not parameter.requires_grad:
            continue
        found, want = parameter.grad, expected.gradients[name]
        found = torch.zeros_like(parameter) if found is None else found
        want = torch.zeros_like(parameter) if want is None else want
        limit = GRADIENT * max(float(want.abs().max()), 1e-3 * largest)
        compare(f"gradient of {name}", found, want, limit)


def check_adapters(one: Subject, words: list[str], rows: list[list[int]]) -> None:
    """Loss and gradients of adapters that have moved from their start."""
    began = start(one, [*words, *LORA])
    move(began.model)
    check_gradients(one, began, rows)


def check_recompute(one: Subject, words: list[str], rows: list[list[int]]) -> None:
    """Gradients with activations that are computed again."""
    check_gradients(one, start(one, [*words, "model.gradient_checkpointing=true"]), rows)


def check_meter(began: Started) -> None:
    """That the formula of the meter is for this model too, or says why not."""
    warnings: list[str] = []
    meters.known_flops(began.model, warnings.append)
    if wrong := [warning for warning in warnings if "please report" in warning]:
        raise AssertionError(wrong[0])


@dataclass(slots=True)
class Moved:
    """A model after training, its logits for a record, and what a checkpoint holds of it."""

    logits: Tensor
    trained: Trained


def after_training(one: Subject, words: list[str]) -> Moved:
    """The model with all that these words train moved from its start."""
    if (key := tuple(words)) in one.moved:
        return one.moved[key]
    config = one.config(words)
    spec = one.objective(config).spec
    tokenizer = load_tokenizer(config.model)
    if spec is not None:
        spec = replace(spec, fresh=fresh_of(one, spec))
    base = load_base(config.model, one.base, torch.float32, len(tokenizer), spec)
    model = with_adapters(base, config, spec).eval()
    untrained = logits_of(one, model)
    move(model)
    logits = logits_of(one, model)
    if float((untrained - logits).abs().max()) < 1e-3:
        raise AssertionError("training moved nothing")
    weights = checkpoint(model, one.work / f"weights-{len(one.moved)}.safetensors")
    one.moved[key] = Moved(logits, Trained(config, weights, tokenizer, torch.float32, spec))
    return one.moved[key]


def check_export(one: Subject, words: list[str], kind: Kind) -> None:
    """Save what training made of the model, open it again, compare; the launcher compares too."""
    moved = after_training(one, words)
    trained, out = moved.trained, one.work / kind.value
    export(trained, kind, out, lambda folder: verify(trained, folder))
    again = open_export(
        out,
        one.base,
        dtype=torch.float32,
        num_tokens=trained.num_tokens,
        trust_remote_code=False,
        head=trained.head,
    )
    limit = LOGITS * float(moved.logits.abs().max())
    compare("logits of the export", logits_of(one, again), moved.logits, limit)


def check_generation(one: Subject, words: list[str]) -> None:
    """Greedy answers to a batch of prompts, against one `generate` a prompt."""
    began = start(one, words)
    tokenizer = load_tokenizer(began.config.model)
    decoding = Decoding(max_new_tokens=8)
    stops = find_stop_tokens(began.model, tokenizer)
    prompts = [
        TokenizedPrompt(record, one.cache.record(record)[0].tolist(), "", str(record))
        for record in (0, 2)
    ]
    wanted = {}
    try:
        for prompt in prompts:
            new = answer_alone(one, prompt.tokens, stops, decoding.max_new_tokens)
            wanted[prompt.id] = read(prompt, prompt.tokens, new, tokenizer, decoding).answer
    except Exception as error:
        raise Unusable(describe(error)) from error
    found = generate_records(prompts, began.model, tokenizer, decoding)
    answers = {record.id: record.answer for record in found}
    if answers != wanted:
        raise Different(f"answers {list(answers.values())}, not {list(wanted.values())}")


def answer_alone(one: Subject, tokens: list[int], stops: list[int], most: int) -> list[int]:
    """Plain transformers' greedy answer to one prompt, before the first of `stops`."""
    model = plain(one, None).eval()
    model.config.use_cache = True
    ids = torch.tensor([tokens])
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            eos_token_id=stops,
        )
    new: list[int] = output[0, len(tokens) :].tolist()
    end = next((i for i, token in enumerate(new) if token in stops), len(new))
    return new[:end]


@dataclass(slots=True)
class Outcome:
    """What came of a check: "equal", "refused", "different", "not causal", "error", or "unusable"
    where plain transformers fails."""

    check: str
    outcome: str
    detail: str = ""
    value: Any = None
    """What the check returned."""


def run(name: str, check: Callable[..., Any], *args: Any) -> Outcome:
    """The outcome of one check."""
    try:
        value = check(*args)
    except LauncherError as error:
        found = "; ".join(problem.found for problem in error.problems)
        # Only what is said before training is a refusal.
        kind = "refused" if isinstance(error, ConfigError) else "error"
        return Outcome(name, kind, f"{type(error).__name__}: {found}")
    except Different as error:
        return Outcome(name, "different", str(error))
    except Unusable as error:
        return Outcome(name, "unusable", str(error))
    except NotCausal as error:
        return Outcome(name, "not causal", str(error))
    except Exception as error:
        return Outcome(name, "error", describe(error))
    return Outcome(name, "equal", value=value)


def check_family(one: Subject) -> Iterator[Outcome]:
    """All checks of one model, each after the other."""
    yield run("plain", check_sense, one)
    chosen: list[str] | None = None
    for layout, ways in LAYOUTS.items():
        for words in ways:
            began = run(f"{layout}/start", start, one, words)
            if began.outcome != "refused":
                break
        if began.outcome == "equal":
            began.detail = "; ".join([" ".join(words), *began.value.layout])
        yield began
        if began.outcome != "equal":
            continue
        rows = [[0, 1, 2]] if layout == "packed" else [[0, 1], [2]]
        single = [[0], [1], [2], [0, 2, 0]]
        yield run(f"{layout}/loss", check_loss, one, began.value, rows)
        if chosen is None:
            chosen = words
            yield run(f"{layout}/micro", check_loss, one, began.value, single)
            yield run(f"{layout}/gradient", check_gradients, one, began.value, rows)
            yield run("meter", check_meter, began.value)
            yield run(f"{layout}/lora", check_adapters, one, words, rows)
            yield run(f"{layout}/recompute", check_recompute, one, words, rows)
    if chosen is None:
        return
    lora = [*chosen, *LORA]
    yield run("full", check_export, one, chosen, Kind.full)
    yield run("adapter", check_export, one, lora, Kind.adapter)
    yield run("merged", check_export, one, lora, Kind.merged)
    if not one.classifies:
        yield run("generate", check_generation, one, chosen)


def check_engine(one: Subject) -> Iterator[Outcome]:
    """Runs that are stopped in the middle and resumed, at ZeRO-2 and 3, on one and on two ranks."""
    generator = np.random.default_rng(0)
    records = [
        (generator.integers(7, 250, n).tolist(), [0] * (n // 2) + [1] * (n - n // 2))
        for n in generator.integers(5, 60, 24)
    ]
    caches.write(one.work / "engine-cache", records, max_length=64)
    found: dict[tuple[str, int], list[float]] = {}
    for ranks in (1, 2):
        trained = run(f"{ranks} rank(s)", train_and_resume, one, ranks)
        yield trained
        for name, result in (trained.value or {}).items():
            yield run(f"resume {name}, {ranks} rank(s)", check_resumed, result)
            parts = [[*rank["first"], *rank["rest"]] for rank in result["ranks"]]
            found[name, ranks] = np.sum(parts, axis=0).tolist()
    for method in ("full", "lora"):
        own = {key: losses for key, losses in found.items() if key[0].startswith(method)}
        wanted = own.get((f"{method}-2", 1))
        for (name, ranks), losses in own.items():
            if wanted is not None:
                yield run(f"losses {name}, {ranks} rank(s)", check_same_run, losses, wanted)


def train_and_resume(one: Subject, ranks: int) -> dict[str, Any]:
    """What `tests/train/resume_worker.py` makes of the model, by case."""
    cases = [
        {
            "name": f"{method}-{zero}",
            "config": {
                "model": {"name": str(one.base)},
                "data": {"max_length": 64},
                "batch": {"sequences": 4, "micro": 1},
                "train": {"steps": 4},
                "engine": {"zero": zero},
                "optim": {"name": "adamw", "lr": 1e-3},
            }
            | ({"peft": {"name": "lora", "rank": 4}} if method == "lora" else {}),
        }
        for method in ("full", "lora")
        for zero in (2, 3)
    ]
    folder = str(one.work / f"runs-{ranks}")
    about = {"cache": str(one.work / "engine-cache"), "folder": folder, "cases": cases}
    described, out = one.work / f"cases-{ranks}.json", one.work / f"out-{ranks}.json"
    described.write_text(json.dumps(about))
    worker = ROOT / "tests/train/resume_worker.py"
    done = run_ranks(worker, str(described), str(out), ranks=ranks, timeout_s=400, exit_code=None)
    if done.exit_code:
        lines = [
            line for line in done.output.splitlines() if re.match(r".*(Error|Exception):", line)
        ]
        raise RuntimeError(lines[0] if lines else done.output[-200:])
    return {result["name"]: result for result in json.loads(out.read_text())}


def check_resumed(result: dict[str, Any]) -> None:
    """That a run went on as if it had never stopped, bit for bit."""
    for rank in result["ranks"]:
        if rank["again"] != rank["rest"] or rank["resumed"] != rank["straight"]:
            raise Different(f"losses {rank['again']}, not {rank['rest']}")


def check_same_run(losses: list[float], wanted: list[float]) -> None:
    """That the losses of every step are those of another stage and number of ranks."""
    for found, want in zip(losses, wanted, strict=True):
        compare("loss of a step", torch.tensor(found), torch.tensor(want), 1e-3 * abs(want))


def describe(error: BaseException) -> str:
    """The error, and the last place that raised it, outside of torch."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename] or frames
    place = own[-1].filename.split("site-packages/")[-1].split("/families/")[-1]
    message = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {message} ({place}:{own[-1].lineno})"


def compare(what: str, found: Tensor, wanted: Tensor, limit: float) -> None:
    """Raise `Different` where any element is further off than `limit`."""
    if found.shape != wanted.shape:
        raise Different(f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    difference = float((found.double() - wanted.double()).abs().max()) if found.numel() else 0.0
    if not difference <= limit:
        raise Different(f"{what} differs by {difference:.2g} (limit {limit:.1g})")


@torch.no_grad()
def move(model: nn.Module) -> None:
    """Move all that is trained, by the same amounts for the same names in the same order."""
    generator = torch.Generator().manual_seed(5)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def copy_trained(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the trained parameters of `source`; both have the same."""
    theirs = dict(target.named_parameters())
    for name, parameter in source.named_parameters():
        if parameter.requires_grad:
            theirs[name].copy_(parameter)


def checkpoint(model: nn.Module, path: Path) -> FragmentReader:
    """What is trained, as a checkpoint of one rank holds it."""
    parts = [
        Fragment(name, tuple(p.shape), 0, p.numel(), lambda p=p: p.detach().reshape(-1))
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    write_fragments(path, parts)
    return FragmentReader([path])


def fresh_of(one: Subject, head: SequenceHead) -> tuple[str, ...]:
    """The modules that the base lacks."""
    from launcher.model.classifier import open_classifier

    fresh: tuple[str, ...] = open_classifier(one.base, head)[1]
    return fresh


def logits_of(one: Subject, model: Any) -> Tensor:
    """Logits of the longest record."""
    model.config.use_cache = False
    with torch.no_grad():
        tokens: Row = make_row(one.cache, [1])
        logits: Tensor = model(input_ids=tokens.input_ids[None]).logits.float()
    return logits
