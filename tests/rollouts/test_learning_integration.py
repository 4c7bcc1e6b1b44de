"""Learning from given answers is that of plain PyTorch for every loss, ZeRO stage, number of ranks,
cut of the batch and packing, with all weights and with adapters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.rundir import RunDir
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal
from support import caches
from support.configs import make_config
from support.distillation import divergence
from support.models import make_llama
from support.ranks import run_ranks
from support.rollouts import answered

pytestmark = pytest.mark.slow

STEPS, LENGTH, COUNT, NEW = 4, 64, 16, 20
#: Name, which begins with the loss -> options.
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"beta": 0.3, "kl": "k3", "temperature": 0.8},
    "dr_grpo": {"sampler_cap": None},
    "dapo": {"entropy_bonus": 0.05, "temperature": 1.3, "teacher": True, "teacher_weight": 0.6},
    "dapo-taught": {"teacher": True, "teacher_divergence": "forward", "temperature": 0.8},
    "grpo-taught": {
        **{"teacher": True, "teacher_divergence": "jsd", "teacher_beta": 0.3},
        **{"teacher_weight": 0.6, "temperature": 1.3, "entropy_bonus": 0.05},
    },
    "gspo-taught": {
        **{"teacher": True, "teacher_divergence": "reverse", "beta": 0.1},
        **{"clip_low": 0.1, "clip_high": 0.2},
    },
    "dapo-continued": {"beta": 0.5, "kl": "k3", "adapter": True},
    "gspo": {"clip_low": 0.1, "clip_high": 0.2},
    "cispo": {"clip_high": 0.2, "beta": 0.2, "kl": "k2"},
    "rloo": {"clip_low": 0.5, "clip_high": 0.9},
    "reinforce": {"entropy_bonus": 0.1, "beta": 0.1, "kl": "k1"},
}
WAYS: list[dict[str, Any]] = [
    {"zero": 0},
    {"zero": 2, "micro": 1},
    {"zero": 3},
    {"zero": 1, "packing": False, "micro": 2},
    {"zero": 3, "packing": False, "attention": "sdpa"},
]
#: Each loss in two ways, and each way with several losses.
CHOSEN = [
    (loss, WAYS[(i + shift) % len(WAYS)]) for i, loss in enumerate(OPTIONS) for shift in (0, 2, 3)
]


def made_config(folder: Any, loss: str, way: dict[str, Any]) -> dict[str, Any]:
    options = dict(OPTIONS[loss])
    lora = {"name": "lora", "rank": 4}
    if options.pop("adapter", False):
        lora["adapter"] = str(folder / "adapter")
    return {
        "model": {"name": str(folder / "model"), "attention": way.get("attention", "auto")},
        "objective": {
            "name": "grpo",
            "loss": loss.partition("-")[0],
            "group_size": 4,
            "max_new_tokens": NEW,
            **options,
            "teacher": str(folder / "teacher") if "teacher" in OPTIONS[loss] else None,
        },
        "peft": lora if "beta" in OPTIONS[loss] else {"name": "none"},
        "data": {"max_length": LENGTH, "packing": way.get("packing", True)},
        "batch": {"sequences": COUNT, "micro": way.get("micro")},
        "train": {"steps": STEPS},
        "engine": {"zero": way["zero"]},
        # By the usual eps rounding of gradients that are 0 would have steps of full size.
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "eps": 1e-4},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a small cache, and rollouts of answers that weigh differently, in each
    a group without spread; the third has no other."""
    folder = tmp_path_factory.mktemp("learning")
    make_llama(folder / "model", initializer_range=0.2)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "initializer_range": 0.3}
    make_llama(folder / "teacher", seed=1, vocab_size=320, **sizes)  # rows beyond the tokenizer
    adapted(folder)
    rng = np.random.default_rng(0)
    records = [(rng.integers(7, 290, n).tolist(), [0] + [1] * (n - 1)) for n in (16, 9, 24)]
    caches.write(folder / "cache", records, max_length=LENGTH)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for step in range(STEPS):
        prompts = [rng.integers(7, 290, rng.integers(1, 30)).tolist() for _ in range(COUNT // 4)]
        weights = rng.choice([0.5, 1.0, 2.0], COUNT // 4).tolist()
        answers = [one(rng, model, i, prompts[i // 4], weights[i // 4]) for i in range(COUNT)]
        for own in answers if step == 2 else answers[8:12]:
            own.advantage = 0.0
        RolloutJournal(RunDir(folder), COUNT).write(step, answers)
    return folder


def adapted(folder: Any) -> None:
    """Leave an adapter of the model that has learned something."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "adapter")


def one(rng: Any, model: Any, number: int, prompt: list[int], weight: float) -> ScoredAnswer:
    """An answer whose probabilities are near those of the model, so that some ratios are
    clipped."""
    tokens = rng.integers(7, 290, rng.integers(1, NEW)).tolist()
    known = log_probs(model, prompt, tokens, 1.0)[0].detach().numpy()
    old = known + rng.normal(0, 0.4, len(tokens))
    return answered(
        place=number // 4,
        number=number % 4,
        advantage=float(rng.normal()),
        is_learned=number != 5,
        prompt_tokens=prompt,
        tokens=tokens,
        sampler_log_probs=(old + rng.normal(0, 0.3, len(tokens))).tolist(),
        log_probs=old.tolist(),
        teacher_log_probs=(old + rng.normal(0, 0.5, len(tokens))).tolist(),
        weight=weight,
    )


def logits_of(model: Any, prompt: list[int], tokens: list[int], temperature: float) -> Any:
    ids = torch.tensor([[*prompt, *tokens]])
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature


def log_probs(model: Any, prompt: list[int], tokens: list[int], temperature: float) -> Any:
    log_p = logits_of(model, prompt, tokens, temperature).log_softmax(-1)
    return log_p.gather(1, torch.tensor(tokens)[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def apart(model: Any, teacher: Any, own: ScoredAnswer, options: Any, size: int) -> torch.Tensor:
    """Divergence from the teacher at each token, over the tokens that the tokenizer has."""
    asked = own.prompt_tokens, own.tokens, options.temperature
    with torch.no_grad():
        p = logits_of(teacher, *asked)[:, :size].softmax(-1)
    q = logits_of(model, *asked)[:, :size].softmax(-1)
    return divergence(options.teacher_divergence, options.teacher_beta or 0.5, p, q)


def plain_loss(
    model: Any, base: Any, own: ScoredAnswer, options: Any, far: torch.Tensor | None
) -> tuple[torch.Tensor, float]:
    """Loss of one answer and what it counts, from the formulas; `base` is the reference."""
    new, entropy = log_probs(model, own.prompt_tokens, own.tokens, options.temperature)
    old, sampler = torch.tensor(own.log_probs), torch.tensor(own.sampler_log_probs)
    name, (low, high), A = options.loss.name, options.clip, own.advantage
    if options.asks_of_drawn:
        A = A + options.teacher_weight * (torch.tensor(own.teacher_log_probs) - old)
    level = {"gspo": torch.mean, "rloo": torch.sum}.get(name, lambda values: values)
    ratio = level(new - old).exp()
    if name == "reinforce":
        policy = -A * new
    elif name == "cispo":
        policy = -ratio.detach().clamp(max=1 + high) * A * new
    else:
        policy = -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)
    if options.sampler_cap is not None:
        policy = policy * level(old - sampler).exp().clamp(max=options.sampler_cap)
    beside = -options.entropy_bonus * entropy
    if options.beta:
        with torch.no_grad():
            known = log_probs(base, own.prompt_tokens, own.tokens, options.temperature)[0]
        d = new - known
        kl = {"k1": d.detach() * new, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}
        beside = beside + options.beta * kl[options.kl.name]
        if options.kl.name == "k1":  # the value is that of d
            beside = beside + options.beta * (d - d * new).detach()
    if far is not None:
        beside = beside + options.teacher_weight * far
    length = len(own.tokens)
    if name in ("grpo", "gspo", "rloo"):
        loss = policy.mean() + beside.mean()
        return own.weight * loss, own.weight
    loss = (policy + beside).sum()
    counts = {"dapo": length, "cispo": length, "dr_grpo": options.max_new_tokens}.get(name, 1)
    return own.weight * loss, own.weight * counts


def plain_loop(folder: Any, loss: str) -> dict[str, list[float]]:
    """The same training by torch alone: an answer a forward, whole logits, its own gradients."""
    config = make_config(**made_config(folder, loss, WAYS[0]))
    options, size = config.objective, len(AutoTokenizer.from_pretrained(folder / "model"))
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    model, base = (AutoModelForCausalLM.from_pretrained(folder / "model") for _ in range(2))
    if config.peft.name != "none" and config.peft.adapter:
        model = peft.PeftModel.from_pretrained(model, config.peft.adapter, is_trainable=True)
        base = peft.PeftModel.from_pretrained(base, config.peft.adapter)
    elif config.peft.name != "none":
        torch.manual_seed(0)
        model = PEFT_METHODS.load("lora")(model, config.peft)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, eps=1e-4, weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        answers = RolloutJournal(RunDir(folder), COUNT).read(step) or []
        found = []
        for own in (own for own in answers if own.is_learned):
            is_taught = options.teacher_divergence is not None
            far = apart(model, teacher, own, options, size) if is_taught else None
            found.append(plain_loss(model, base, own, options, far))
        total, weight = sum(x for x, _ in found), sum(w for _, w in found)
        mean = total / weight
        mean.backward()
        squares = [p.grad.double().square().sum() for p in trained if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(mean.detach()))
    return {"losses": losses, "norms": norms}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cut_equals_the_plain_loop(place, ranks):
    cases = [
        {
            "name": f"{loss} {way} {shares}",
            "shares": shares,
            "config": made_config(place, loss, way),
        }
        for i, (loss, way) in enumerate(CHOSEN)
        for shares in ((True, False) if i % 4 == 0 else (True,))
    ]
    described = {
        "cache": str(place / "cache"),
        "run": str(place),
        "answers": COUNT,
        "cases": cases,
    }
    (place / "cases.json").write_text(json.dumps(described))
    out = place / f"out-{ranks}.json"
    worker = "tests/rollouts/learning_worker.py"
    run_ranks(worker, str(place / "cases.json"), str(out), ranks=ranks, timeout_s=280)
    found = json.loads(out.read_text())
    assert len(found) == len(cases)
    computed = [[own[key] for own in found] for key in ("computed", "tokens")]
    assert all(
        (count < whole) == (case["shares"] and "sdpa" not in case["name"])
        for case, count, whole in zip(cases, *computed, strict=True)
    ), computed
    for loss in OPTIONS:
        expected = plain_loop(place, loss)
        for got in (own for own in found if own["name"].startswith(f"{loss} ")):
            for key in ("losses", "norms"):
                message = f"{got['name']}, {key}"
                np.testing.assert_allclose(
                    got[key], expected[key], rtol=1e-5, atol=5e-6, err_msg=message
                )
    clipped = {own["name"].split()[0]: own["sums"][0]["clip_share"] for own in found}
    assert all((share > 0) == (loss != "reinforce") for loss, share in clipped.items()), clipped
