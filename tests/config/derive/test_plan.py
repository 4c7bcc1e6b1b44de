"""The plan: cuts of the global batch, steps, resolved formats, its file and its text."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.derive import plan
from launcher.config.derive.plan import Plan
from launcher.config.schema import EarlyStopConfig, MicroBatch, Weights
from launcher.core.errors import ConfigError
from support.configs import make_config


def make(
    world_size: int = 2,
    has_gpu: bool = False,
    packs: int | None = None,
    capability: tuple[int, int] | None = None,
    **s: Any,
) -> Plan:
    base: dict[str, Any] = {"batch": {"sequences": 8}, "train": {"steps": 10}}
    config = make_config(**{**base, **s})
    machine = {"world_size": world_size, "has_gpu": has_gpu, "capability": capability}
    return plan.make(config, train_packs=packs, **machine)


@given(
    world_size=st.integers(1, 64),
    per_rank=st.integers(1, 300),
    max_length=st.integers(1, 40_000),
    has_gpu=st.booleans(),
)
def test_the_cut_makes_the_batch(
    world_size: int, per_rank: int, max_length: int, has_gpu: bool
) -> None:
    total = world_size * per_rank
    config = {"batch": {"sequences": total}, "data": {"max_length": max_length}}
    made = make(world_size, has_gpu, **config)
    assert made.micro_batch * made.accumulation * world_size == total == made.global_sequences
    most = plan.MICRO_TOKENS[made.device]
    assert made.micro_batch == 1 or made.micro_batch * max_length <= most
    larger = [n for n in range(made.micro_batch + 1, per_rank + 1) if per_rank % n == 0]
    assert all(n * max_length > most for n in larger)


@given(ranks=st.integers(1, 4), micro=st.integers(1, 4), accumulation=st.integers(1, 4))
def test_a_given_micro_batch_is_kept(ranks: int, micro: int, accumulation: int) -> None:
    total = ranks * micro * accumulation
    made = make(ranks, batch={"sequences": total, "micro": micro})
    assert (made.micro_batch, made.accumulation) == (micro, accumulation)


@pytest.mark.parametrize(
    ("ranks", "config", "zero"),
    [
        (1, {}, None),
        (2, {}, 2),
        (1, {"engine": {"zero": 3}}, None),
        (1, {"engine": {"precision": "bf16"}}, None),
        (1, {"engine": {"precision": "fp16"}}, 2),
        (1, {"engine": {"zero": 3, "offload_params": True}}, 3),
        (1, {"engine": {"offload_optimizer": True}}, 2),
        (1, {"engine": {"extra": {"prescale_gradients": True}}}, 2),
        (1, {"optim": {"name": "adamw8bit", "lr": 1e-3}}, 2),
        (1, {"optim": {"name": "muon", "lr": 1e-3}}, 2),
    ],
)
def test_one_rank_has_nothing_to_shard(ranks: int, config: Any, zero: int | None) -> None:
    made = make(ranks, **config)
    assert made.zero == zero
    shown = plan.describe(make_config(**config), made)
    assert ("ZeRO" in shown) == (zero is not None)


def test_tokens_are_full_packs() -> None:
    made = make(batch={"tokens": 65536}, data={"max_length": 2048})
    assert made.global_sequences == 32


@pytest.mark.parametrize(
    "batch", [{}, {"tokens": 100}, {"sequences": 7}, {"sequences": 8, "micro": 3}]
)
def test_a_batch_that_cannot_be_cut_is_refused(batch: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(batch=batch)


@pytest.mark.parametrize(
    ("train", "packs", "steps", "epochs"),
    [
        ({"steps": 10}, None, 10, None),
        ({"steps": 10}, 40, 10, 2.0),
        ({"epochs": 1.0}, None, None, 1.0),
        ({"epochs": 1.0}, 40, 5, 1.0),
        ({"epochs": 1.0}, 41, 6, 1.0),
        ({"epochs": 2.5}, 40, 13, 2.5),
        ({"epochs": 0.01}, 40, 1, 0.01),
    ],
)
def test_length(
    train: dict[str, Any], packs: int | None, steps: int | None, epochs: float | None
) -> None:
    made = make(train=train, packs=packs)
    assert (made.steps, made.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "decay"),
    [
        ({"name": "constant"}, 100, 0, 0),
        ({"name": "cosine", "warmup": 0.05}, 300, 15, 285),
        ({"name": "linear", "warmup": 7.0}, 100, 7, 93),
        ({"name": "wsd", "warmup": 0.1, "decay": 0.2}, 100, 10, 20),
        ({"name": "wsd", "decay": 0.2}, 2, 0, 1),
        ({"name": "wsd", "warmup": 0.8, "decay": 0.2}, 9, 7, 2),
        ({"name": "cosine", "warmup": 0.05}, None, None, None),
        ({"name": "cosine", "warmup": 5.0}, None, 5, None),
    ],
)
def test_schedule_in_steps(
    schedule: dict[str, Any], steps: int | None, warmup: int | None, decay: int | None
) -> None:
    train = {"steps": steps} if steps else {"epochs": 1.0}
    made = make(schedule=schedule, train=train)
    assert (made.warmup_steps, made.decay_steps) == (warmup, decay)


@pytest.mark.parametrize(
    ("has_gpu", "sections", "precision", "dtype", "attention"),
    [
        (False, {}, "fp32", "fp32", "document"),
        (True, {}, "bf16", "bf16", "varlen"),
        (True, {"engine": {"precision": "fp16"}}, "fp16", "fp16", "varlen"),
        (True, {"engine": {"precision": "fp32"}}, "fp32", "fp32", "document"),
        (False, {"engine": {"precision": "bf16"}}, "bf16", "bf16", "document"),
        (True, {"model": {"dtype": "fp32", "attention": "sdpa"}}, "bf16", "fp32", "sdpa"),
    ],
)
def test_automatic_choices(
    has_gpu: bool, sections: dict[str, Any], precision: str, dtype: str, attention: str
) -> None:
    made = make(has_gpu=has_gpu, **sections)
    assert made.device == ("cuda" if has_gpu else "cpu")
    assert (made.precision, made.dtype, made.attention) == (precision, dtype, attention)


@pytest.mark.parametrize(
    ("capability", "sections", "precision", "attention"),
    [
        ((7, 0), {}, "fp16", "document"),
        ((7, 5), {}, "fp16", "document"),
        ((7, 5), {"engine": {"precision": "fp32"}}, "fp32", "document"),
        ((7, 5), {"model": {"attention": "sdpa"}}, "fp16", "sdpa"),
        ((8, 0), {}, "bf16", "varlen"),
        ((8, 9), {"engine": {"precision": "fp16"}}, "fp16", "varlen"),
        ((9, 0), {}, "bf16", "varlen"),
        ((10, 0), {}, "bf16", "varlen"),
    ],
)
def test_automatic_choices_are_what_the_oldest_gpu_can(
    capability: tuple[int, int], sections: dict[str, Any], precision: str, attention: str
) -> None:
    made = make(has_gpu=True, capability=capability, **sections)
    assert (made.precision, made.dtype, made.attention) == (precision, precision, attention)


@pytest.mark.parametrize("model", [{"kind": "tiny"}, {"kind": "hf", "name": "nowhere"}])
def test_the_file_gives_back_an_equal_plan(model: dict[str, Any]) -> None:
    made = make(model=model, packs=17)
    assert Plan.from_json(made.to_json()) == made
    assert (made.memory is None) == (model["kind"] == "hf")


def test_a_plan_is_frozen() -> None:
    made = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 1  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    from launcher.config import reference

    assert {f.name for f in dataclasses.fields(Plan)} <= set(reference.docstrings(Plan))


def test_description_says_how_the_batch_is_cut() -> None:
    config = make_config(
        model={"kind": "tiny"},
        peft={"name": "lora"},
        batch={"sequences": 12},
        train={"steps": 30},
        schedule={"warmup": 0.1},
    )
    text = plan.describe(config, plan.make(config, world_size=2, has_gpu=False, train_packs=90))
    assert "12 packs of 1024 tokens = 2 ranks x 1 micro-batch x 6 accumulation" in text
    assert "lora fine-tuning, fp32, attention document" in text
    assert "30 steps (4 epochs), 3 of warm-up" in text
    assert "ZeRO-2 on 2 ranks on cpu" in text
    assert "MiB a rank" in text


def test_description_before_the_data_is_prepared() -> None:
    config = make_config(batch={"sequences": 1}, train={"epochs": 2.0}, data={"packing": False})
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "1 sequence of 1024 tokens = 1 rank x 1 micro-batch" in text
    assert "2 epochs (steps follow when the data is prepared)" in text
    config.train.epochs = 1.0
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "1 epoch (steps follow" in text
    assert "memory   not known" in text


def test_rotary_positions_beyond_those_of_training_are_a_warning(tmp_path: Path) -> None:
    content = {"model_type": "llama", "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(content))

    def told(length: int) -> str:
        config = make_config(
            model={"name": str(tmp_path)},
            batch={"sequences": 1},
            train={"steps": 1},
            data={"max_length": length},
        )
        return plan.describe(config, plan.make(config, world_size=1, has_gpu=False))

    assert "warning" not in told(512)
    assert "warning: data.max_length=513 is beyond the 512 positions that the model" in told(513)


def test_auto_is_an_estimate_until_ranks_have_found_a_micro_batch() -> None:
    batch = {"sequences": 8, "micro": MicroBatch.auto}
    config = make_config(batch=batch, train={"steps": 4}, data={"max_length": 512})
    guessed = plan.make(config, world_size=2, has_gpu=False)
    by_rule = make(2, batch={"sequences": 8}, data={"max_length": 512})
    assert (guessed.micro_batch, guessed.micro_by) == (by_rule.micro_batch, "rule") == (2, "rule")
    said = "2 ranks x 2 micro-batch x 2 accumulation (batch.micro=auto: an estimate, the start of"
    assert said in plan.describe(config, guessed)
    found = plan.make(config, world_size=2, has_gpu=False, chosen=(4, "measured"))
    assert (found.micro_batch, found.accumulation, found.micro_by) == (4, 1, "measured")
    assert "auto" not in plan.describe(config, found)
    assert plan.kept_choice(json.loads(found.to_json()), 2) == (4, "measured")
    assert plan.kept_choice(json.loads(found.to_json()), 4) is None
    assert plan.kept_choice(json.loads(guessed.to_json()), 2) is None
    assert plan.kept_choice({}, 2) is None  # of an earlier version
    config.batch.micro = 1
    given = plan.make(config, world_size=2, has_gpu=False, chosen=(4, "measured"))
    assert (given.micro_batch, given.micro_by) == (1, "config")


@given(packs=st.integers(1, 10_000), epochs=st.floats(0.01, 50), total=st.integers(1, 300))
def test_epochs_are_covered_and_no_step_more(packs: int, epochs: float, total: int) -> None:
    made = make(1, batch={"sequences": total}, train={"epochs": epochs}, packs=packs)
    assert made.steps is not None
    assert made.steps * total >= packs * epochs * (1 - 1e-9)
    assert (made.steps - 1) * total < packs * epochs or made.steps == 1
    assert math.isclose(made.epochs or 0, epochs)


@pytest.mark.parametrize(
    ("options", "steps", "every"),
    [
        ({}, 10, None),
        ({"every_steps": 4}, 10, 4),
        ({"times": 5}, 10, 2),
        ({"times": 5}, 14, 2),
        ({"times": 5}, 3, 1),
        ({"times": 5, "name": "none"}, 10, None),
    ],
)
def test_evaluations_are_spread_over_the_run(
    options: dict[str, Any], steps: int, every: int | None
) -> None:
    made = make(eval=options, train={"steps": steps})
    assert made.eval_steps == every
    if every and "times" in options:
        assert steps // every >= min(steps, options["times"])


def test_times_without_known_steps_are_spread_once_they_are() -> None:
    sections = {"eval": {"times": 4}, "train": {"epochs": 2.0}}
    assert make(**sections).eval_steps is None
    assert make(packs=80, **sections).eval_steps == 5


def test_a_plan_of_before_is_read() -> None:
    raw = json.loads(make().to_json())
    del raw["eval_steps"]
    assert Plan.from_json(json.dumps(raw)).eval_steps is None


def test_which_weights_are_the_result() -> None:
    stop = {"early_stop": EarlyStopConfig(patience=2)}
    for sections, best in (
        ({}, False),
        ({"train": stop}, True),
        ({"train": stop, "export": {"weights": Weights.last}}, False),
        ({"export": {"weights": Weights.best}}, True),
    ):
        assert plan.exports_best(make_config(**sections)) is best


def test_the_rule_of_stopping_is_said() -> None:
    stop = {"early_stop": EarlyStopConfig(patience=3), "steps": 100}
    config = make_config(batch={"sequences": 8}, train=stop, eval={"times": 10})
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "early after 3 evaluations without progress in eval.loss, one in 10 steps" in text
    config.eval.times = 4
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "eval.loss: never, as that takes 4, and 3 come before the end" in text
    config.eval.times, config.eval.every_steps = None, 1
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "eval.loss, one a step" in text
    config.train.steps = 1
    text = plan.describe(config, plan.make(config, world_size=1, has_gpu=False))
    assert "length   1 step\n" in text or "length   1 step," in text
    assert "eval.loss: never, as that takes 4, and none come before the end" in text
