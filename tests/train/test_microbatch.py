"""`batch.micro=auto`: what is tried, what is taken, and that all ranks take the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.derive import plan
from launcher.config.schema import MicroBatch, variants
from launcher.core.errors import OutOfMemoryError
from launcher.data.pack.loader import Loader
from launcher.data.pack.packing import PackedOrder
from launcher.model.load import load_model
from launcher.train import microbatch
from support import caches
from support.configs import make_config
from support.models import make_llama
from support.ranks import run_ranks


def chosen(seconds, sizes=(1, 2, 4, 8)):
    """What is taken, and what was tried, where `seconds` are those a token of a size."""
    tried = []

    def measure(size):
        tried.append(size)
        if isinstance(seconds[size], Exception):
            raise seconds[size]
        return seconds[size]

    return microbatch.best(microbatch.fastest(sizes, measure)), tried


@given(st.integers(1, 500))
def test_what_is_tried_divides_the_share_of_a_rank_and_grows(per_rank):
    sizes = microbatch.sizes(per_rank)
    assert sizes[0] == 1
    assert sizes[-1] == per_rank
    assert all(per_rank % size == 0 for size in sizes)
    assert sizes == sorted(set(sizes))


def test_sizes_that_are_close_to_each_other_are_left_out():
    assert microbatch.sizes(60) == [1, 2, 3, 5, 10, 15, 30, 60]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_ends_at_the_first_that_does_not_fit(error):
    assert chosen({1: 1.0, 2: 0.6, 4: error, 8: 0.1}) == (2, [1, 2, 4])


def test_it_ends_where_less_than_5_percent_are_gained():
    assert chosen({1: 1.0, 2: 0.6, 4: 0.58, 8: 0.1}) == (2, [1, 2, 4])
    assert chosen({1: 1.0, 2: 0.6, 4: 0.5, 8: 0.4}) == (8, [1, 2, 4, 8])
    assert chosen({1: 1.0, 2: 1.2, 4: 0.1, 8: 0.1}) == (1, [1, 2])


def test_what_is_foreseen_not_to_fit_is_not_taken():
    assert chosen({1: 1.0, 2: "needs more", 4: 0.1, 8: 0.1}) == (1, [1, 2])
    # By an estimate alone a run is not refused.
    assert chosen({1: "needs more", 2: 0.1, 4: 0.1, 8: 0.1}) == (1, [1])


def test_nothing_fits_if_the_first_does_not():
    with pytest.raises(OutOfMemoryError, match="micro-batch of 1 runs out of memory on rank 0"):
        chosen({1: MemoryError()})


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        chosen({1: 1.0, 2: RuntimeError("shapes do not match")})


def test_the_largest_that_fits_by_estimate_is_taken_where_nothing_is_measured():
    config = make_config(
        model={"kind": "tiny"},
        batch={"sequences": 32, "micro": MicroBatch.auto},
        train={"steps": 2},
        engine={"zero": 3},
    )
    machine = {"world_size": 2, "has_gpu": True}

    def plan_of(choice):
        return plan.make(config, **machine, chosen=choice)

    def taken(size):
        uses = dict(plan_of((size, "estimate")).memory)
        return sum(uses.values()) - uses["host"]

    rule = plan.make(config, **machine)
    assert taken(16) > taken(8) > taken(4)
    for free, size in ((taken(8), 8), (taken(16) - 1, 8), (taken(16), 16), (10 * taken(16), 16)):
        made, how = microbatch.estimated(plan_of, int(free / 0.8) + 1, rule)
        assert (made.micro_batch, made.accumulation, made.micro_by) == (
            size,
            16 // size,
            "estimate",
        )
        assert how.startswith("an estimate, as ZeRO-3 is not measured: about ")
    made, how = microbatch.estimated(plan_of, 1000, rule)
    assert made.micro_batch == 1
    assert "which may not fit" in how


LENGTHS = (40, 10, 60, 20, 50, 30, 12, 14)


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    """Makes `Passes` of a small model with so many free bytes; and the model."""
    folder = tmp_path_factory.mktemp("passes")
    rng = np.random.default_rng(0)
    records = [(rng.integers(7, 290, n).tolist(), [0] + [1] * (n - 1)) for n in LENGTHS]
    cache = caches.write(folder / "cache", records, max_length=64)
    config = make_config(
        model={"name": str(make_llama(folder / "model", attention_dropout=0.1))},
        data={"max_length": 64, "packing": False},
        batch={"sequences": 4},
        train={"steps": 2},
    )
    made = plan.make(config, world_size=1, has_gpu=False)
    objective = variants.objective(config.objective)
    model = load_model(config.model, made, 0, None, None)
    order = PackedOrder(cache.lengths, 64, 0, False, False)
    cut = {"micro_batch": 1, "accumulation": 4, "rank": 0, "world_size": 1}
    rows = microbatch.longest(
        Loader(cache, order, global_sequences=4, **cut), 4, order.num_packs, 1
    )

    def make(free, reserve=0):
        return microbatch.Passes(
            *(model, objective.head(model), objective, cache, rows),
            config=config,
            device=torch.device("cpu"),
            uses_of=lambda size: microbatch.Uses(reserve, 0),
            free=free,
        )

    return make, model, rows


def test_the_longest_sequences_of_a_rank_are_passed(passes):
    assert [len(row.input_ids) for row in passes[2]] == [60, 50, 40, 30]


def test_passes_leave_nothing_behind(passes):
    make, model, _ = passes
    model.eval()
    before = torch.random.get_rng_state()
    weights = [parameter.clone() for parameter in model.parameters()]
    assert make(1 << 30)(4) > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, weights, model.parameters()))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training


def test_what_takes_more_than_is_free_does_not_fit(passes):
    make, _, _ = passes
    assert make(1 << 30)(1) > 0
    reserved = make(1 << 30, reserve=1 << 30)(1)
    assert reserved.startswith("needs 1.00 GiB with optimizer and gradients, of 921.6 MiB free")
    assert "MiB with optimizer and gradients, of 0.0 MiB free" in make(1024)(1)


def test_what_would_surely_take_too_much_is_not_tried_on_a_host(passes):
    make, _, _ = passes
    measured = make(1 << 30)
    measured(1)
    one = measured._last[1]
    tight = make(3 * one / microbatch.SHARE)
    assert tight(1) > 0
    tight._measured = None  # it would fail
    assert tight(4).startswith("would need more than the ")


@pytest.mark.slow
def test_all_ranks_take_what_fits_and_is_fast_on_each_of_them(tmp_path):
    run_ranks("tests/train/microbatch_worker.py", str(tmp_path / "out.json"))
    first, second = json.loads((tmp_path / "out.json").read_text())
    assert first == second
    why = "runs out of memory on rank 1"
    assert first["at 4"] == {"asked": [1, 2, 4], "best": 2, "why": why}
    assert first["at 1"]["asked"] == [1]
    assert f"a micro-batch of 1 {why}" in first["at 1"]["error"]
    assert first["uneven"] == {"asked": [1, 2, 4], "best": 2, "why": ""}
