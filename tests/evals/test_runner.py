"""Loss pass and generation: exact counts over ranks, exact sums over records."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.core.errors import ConfigError
from launcher.evals.decoding import Decoding, SeededChoice
from launcher.evals.generation import find_stop_tokens, generate_records, reads_padding
from launcher.evals.records import LossRecord, TokenizedPrompt, prompt_and_reference
from launcher.evals.runner import (
    EvaluationStopped,
    gather,
    loss_records,
    plan_batches,
    rows_of,
    shard,
)
from support.results import results_of

EOS, PAD, TURN = 1, 0, 2
SIX = Decoding(max_new_tokens=6)


@dataclass
class Row:
    """The fields of a packed row that the pass and the scorer below read."""

    input_ids: torch.Tensor
    document_starts: torch.Tensor
    target_index: torch.Tensor
    targets: torch.Tensor
    sizes: list[int]


class Letters:
    """A tokenizer of one token a letter; the first three ids are special."""

    eos_token_id, pad_token_id = EOS, PAD
    all_special_ids = (PAD, EOS)
    added_tokens_decoder = {PAD: "<pad>", EOS: "<eos>", TURN: "<turn>"}

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces=False):
        return "".join(chr(ord("a") + t - 3) for t in tokens if t > TURN or not skip_special_tokens)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).train()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 29, size=n).tolist() for n in (5, 17, 2, 9, 30, 11, 3)]


def build(documents, ids):
    """A row of whole documents in which every token but the first of each is a target."""
    chosen = [documents[i] for i in ids]
    starts = np.cumsum([0] + [len(tokens) for tokens in chosen])
    index = [p for a, b in zip(starts, starts[1:], strict=False) for p in range(a, b - 1)]
    tokens = torch.tensor([t for tokens in chosen for t in tokens])
    return Row(
        tokens,
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(index),
        tokens[torch.tensor(index) + 1],
        [1] * len(chosen),
    )


def scorer(model):
    """Score each document of a row on its own."""

    def score(row):
        starts = row.document_starts.tolist()
        logits = torch.cat(
            [
                model(row.input_ids[None, a:b]).logits[0]
                for a, b in zip(starts, starts[1:], strict=False)
            ]
        )[row.target_index]
        losses = torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
        return losses, logits.argmax(-1) == row.targets

    return score


@given(
    st.lists(st.integers(1, 200), max_size=60),
    st.integers(1, 5),
    st.integers(1, 500),
    st.sampled_from([None, 1, 64]),
    st.booleans(),
)
def test_plan_covers_every_record_once_within_the_budget(
    lengths, world_size, batch_tokens, new_tokens, lockstep
):
    plans = [
        plan_batches(
            lengths,
            batch_tokens=batch_tokens,
            rank=rank,
            world_size=world_size,
            lockstep=lockstep,
            new_tokens=new_tokens,
        )
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    counted = [b for plan in plans for b in plan if b.counted]
    assert sorted(p for b in counted for p in b.positions) == list(range(len(lengths)))
    for batch in counted:
        sizes = [lengths[p] for p in batch.positions]
        cost = sum(sizes) if new_tokens is None else len(sizes) * (max(sizes) + new_tokens)
        assert cost <= batch_tokens or len(sizes) == 1
    if lockstep:
        assert all(batch.positions for plan in plans for batch in plan)


def test_plan_gives_ranks_equal_work():
    lengths = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    work = [
        sum(
            lengths[p]
            for b in plan_batches(lengths, batch_tokens=4000, rank=r, world_size=4)
            for p in b.positions
        )
        for r in range(4)
    ]
    assert max(work) <= 1.05 * min(work)


@given(st.lists(st.integers()), st.integers(1, 7))
def test_shards_are_disjoint_and_complete(ids, world_size):
    parts = [shard(ids, rank, world_size) for rank in range(world_size)]
    assert sorted(i for part in parts for i in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_loss_records_do_not_depend_on_batching(model, documents, batch_tokens):
    ids = [10 + i for i in range(len(documents))]
    batches = plan_batches([len(d) for d in documents], batch_tokens=batch_tokens)
    rows = rows_of(batches, ids, lambda chosen: build(documents, [i - 10 for i in chosen]))
    records = gather(loss_records(rows, scorer(model)), expected=len(documents))
    assert [record.id for record in records] == ids
    for record, tokens in zip(records, documents, strict=True):
        tokens = torch.tensor(tokens)[None]
        mean = model(tokens, labels=tokens).loss.item()
        assert record.targets == tokens.shape[1] - 1
        assert record.loss_sum == pytest.approx(mean * record.targets, rel=1e-5)
        hits = model(tokens).logits[0, :-1].argmax(-1) == tokens[0, 1:]
        assert record.correct == int(hits.sum())


def test_a_record_without_targets_counts_with_nothing():
    row = Row(*(torch.tensor(v) for v in ([5, 6, 7], [0, 1, 3], [1], [7])), [1, 1])
    records = loss_records([(row, [4, 9])], lambda r: (torch.ones(1), torch.tensor([True])))
    assert records == [LossRecord(4, 0.0, 0, 0), LossRecord(9, 1.0, 1, 1)]


def test_filler_is_scored_and_dropped_and_idle_rounds_are_polled():
    row, scored, polls = build([[3, 4, 5]], [0]), [], []

    def score(row):
        scored.append(row)
        return torch.ones(2), torch.ones(2, dtype=torch.bool)

    def should_stop():
        polls.append(None)
        return False

    assert [
        r.id for r in loss_records([(row, [0]), (row, []), (None, [])], score, should_stop)
    ] == [0]
    assert (len(scored), len(polls)) == (2, 3)


def test_a_request_to_stop_ends_both_passes(model, documents):
    rows = ((build(documents, [i]), [i]) for i in range(3))
    with pytest.raises(EvaluationStopped):
        loss_records(rows, scorer(model), iter([False, True]).__next__)
    assert next(rows)[1] == [2]
    with pytest.raises(EvaluationStopped):
        generate_records(
            [TokenizedPrompt(0, [5], "", "")],
            model,
            Letters(),
            Decoding(1),
            should_stop=lambda: True,
        )
    assert model.training


def test_a_record_scored_twice_is_our_own_bug():
    with pytest.raises(AssertionError):
        gather([LossRecord(1, 0.0, 1, 0), LossRecord(1, 0.0, 1, 0)])
    with pytest.raises(AssertionError):
        gather([LossRecord(1, 0.0, 1, 0)], expected=2)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([0, 0, 1, 1, 1], ([3, 4], [5, 6, 7])),
        ([0, 1, 0, 1, 0], ([3, 4, 5], [6])),
        ([1, 0, 0, 0, 1], ([3, 4, 5, 6], [7])),
        ([1, 1, 1, 1, 1], None),
        ([1, 1, 0, 0, 0], None),
        ([0, 0, 0, 0, 0], None),
    ],
)
def test_prompt_and_reference_split_before_the_last_run_of_targets(targets, expected):
    tokens = np.arange(3, 8, dtype=np.int32)
    assert prompt_and_reference(tokens, np.array(targets, dtype=np.uint8)) == expected


def generate(model, prompts, decoding=SIX, **options):
    options = {"stop_tokens": [EOS], **options}
    return gather(generate_records(prompts, model, Letters(), decoding, **options))


def prompts_of(documents):
    return [TokenizedPrompt(i, d, f"ref {i}", f"d.jsonl:{i + 1}") for i, d in enumerate(documents)]


def test_answers_do_not_depend_on_batching_and_padding(model, documents):
    prompts = prompts_of(documents)
    alone = generate(model, prompts, batch_tokens=1)
    assert generate(model, prompts, batch_tokens=10_000) == alone
    assert [record.id for record in alone] == list(range(len(documents)))
    assert alone[2].where == "d.jsonl:3"
    assert alone[2].reference == "ref 2"
    assert alone[2].prompt == Letters().decode(documents[2], True, False)
    assert any(record.answer for record in alone)


def test_answers_are_the_greedy_continuation(model, documents):
    tokens = list(documents[1])
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    expected = Letters().decode(tokens[len(documents[1]) :], True, False)
    assert generate(model, prompts_of(documents), stop_tokens=[PAD])[1].answer == expected


def test_answers_end_before_a_stop_token(model, documents):
    free = generate(model, prompts_of(documents), stop_tokens=[PAD])
    longest = max(free, key=lambda record: len(set(record.answer)))
    stop = ord(longest.answer[-1]) - ord("a") + 3
    cut = generate(model, prompts_of(documents), stop_tokens=[stop])[longest.id].answer
    assert cut == longest.answer[: longest.answer.index(longest.answer[-1])]


def test_a_packed_row_attention_is_swapped_for_one_that_reads_padding(model, documents):
    def deaf(module, query, key, value, attention_mask, **kwargs):
        raise AssertionError("called in generation")

    from transformers import AttentionInterface

    AttentionInterface.register("rows_only", deaf)
    expected = generate(model, prompts_of(documents))
    before = model.config._attn_implementation
    model.set_attn_implementation("rows_only")
    try:
        assert generate(model, prompts_of(documents)) == expected
        assert model.config._attn_implementation == "rows_only"
    finally:
        model.set_attn_implementation(before)


def test_long_prompts_keep_their_end(model, documents):
    long = [TokenizedPrompt(0, documents[4] * 3, "", "")]
    assert generate(model, long)[0].prompt == Letters().decode(
        (documents[4] * 3)[-58:], True, False
    )


def test_stop_tokens_come_from_model_tokenizer_and_what_was_taught(model):
    assert find_stop_tokens(model, Letters()) == [EOS]
    assert find_stop_tokens(model, Letters(), [TURN, EOS]) == [EOS, TURN]


def test_batches_answer_as_generate_does_record_by_record(model, documents):
    expected = []
    for tokens in documents:
        ids = torch.tensor([tokens])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        answer = output[0, len(tokens) :].tolist()
        expected.append(Letters().decode(answer, skip_special_tokens=True))
    assert [record.answer for record in generate(model, prompts_of(documents))] == expected


SAMPLED = Decoding(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=3)


def test_drawn_answers_depend_on_seed_and_record_alone(model, documents):
    prompts = prompts_of(documents)
    alone = generate(model, prompts, SAMPLED, batch_tokens=1)
    assert generate(model, prompts, SAMPLED, batch_tokens=10_000) == alone
    assert generate(model, prompts[::-1][:4], SAMPLED) == alone[3:]
    ranks = [
        generate_records(
            prompts, model, Letters(), SAMPLED, stop_tokens=[EOS], rank=r, world_size=3
        )
        for r in range(3)
    ]
    assert gather([record for part in ranks for record in part]) == alone
    assert generate(model, prompts, replace(SAMPLED, seed=4)) != alone
    assert generate(model, prompts) != alone


def test_tokens_are_drawn_with_their_shares():
    shares = torch.tensor([0.5, 0.2, 0.3])
    width, records = 1, range(4000)

    def drawn(decoding):
        chosen = SeededChoice([(decoding, record) for record in records], width)(
            torch.zeros(4000, 1), (2.0 * shares.log()).repeat(4000, 1)
        )
        assert (chosen.isfinite().sum(-1) == 1).all()
        return torch.bincount(chosen.argmax(-1), minlength=3) / 4000

    assert drawn(Decoding(1, temperature=2.0)).numpy() == pytest.approx(shares.numpy(), abs=0.03)
    nucleus = drawn(Decoding(1, temperature=2.0, top_p=0.7))
    assert nucleus.numpy() == pytest.approx([0.625, 0, 0.375], abs=0.03)
    for narrow in (Decoding(1, temperature=2.0, top_p=0.5), Decoding(1, top_p=0.0), Decoding(1)):
        assert drawn(replace(narrow, temperature=2.0))[0] == 1 or narrow.top_p == 1
        assert drawn(replace(narrow, temperature=0.0))[0] == 1


def test_rows_of_one_batch_are_decoded_each_in_its_own_way():
    logits = torch.tensor([0.5, 0.2, 0.3]).log().repeat(3, 1)
    rows = [(Decoding(1, temperature=1.0, seed=seed), 0) for seed in (1, 2)]
    alone = [SeededChoice([row], 1)(torch.zeros(1, 1), logits[:1])[0] for row in rows]
    greedy, *drawn = SeededChoice([(Decoding(4), 0), *rows], 1)(torch.zeros(3, 1), logits)
    assert greedy.argmax() == 0
    assert all(torch.equal(one, other) for one, other in zip(alone, drawn, strict=True))


@pytest.mark.parametrize("letters", [1, 2, 3])
def test_answers_end_before_a_stop_string_that_may_span_tokens(model, documents, letters):
    long = Decoding(max_new_tokens=24, temperature=2.0)
    free = generate(model, prompts_of(documents), long)
    stop = free[0].answer[4 : 4 + letters]
    cut = generate(model, prompts_of(documents), replace(long, stop=(stop, "never")))
    assert [record.answer for record in cut] == [r.answer.partition(stop)[0] for r in free]
    assert cut[0].answer != free[0].answer


def test_a_stop_string_ends_the_work_not_only_the_text(model, documents):
    long = Decoding(max_new_tokens=24, temperature=2.0)
    [free] = generate(model, prompts_of(documents)[:1], long)
    forwards = []
    hook = model.register_forward_hook(lambda *_: forwards.append(None))
    generate(model, prompts_of(documents)[:1], replace(long, stop=(free.answer[:3],)))
    hook.remove()
    assert len(forwards) <= 4


def test_answers_that_never_end_are_cut_and_counted(model, documents):
    endless = results_of(generations=generate(model, prompts_of(documents), stop_tokens=[PAD]))
    assert endless.cut() == len(documents)
    first = ord(endless.generations[0].answer[0]) - ord("a") + 3
    ended = generate(model, prompts_of(documents)[:1], stop_tokens=[first])
    assert results_of(generations=ended).cut() == 0


def copy_of(model, prepare):
    """The model with inputs that `prepare` makes for each token."""
    copied = type(model)(model.config).eval()
    copied.load_state_dict(model.state_dict())
    copied.prepare_inputs_for_generation = prepare
    return copied


def test_prompts_of_a_model_that_cannot_read_padding_are_batched_by_length():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=29, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = model.prepare_inputs_for_generation

    def from_the_left(*args, **kwargs):
        inputs = plain(*args, **kwargs)
        inputs["position_ids"] = None
        return inputs

    prompts = [
        TokenizedPrompt(i, list(range(3, 3 + n)), "", str(i)) for i, n in enumerate((4, 9, 4, 2, 9))
    ]
    assert reads_padding(model)
    expected = generate(model, prompts)
    positions = copy_of(model, from_the_left)
    assert not reads_padding(positions)
    assert generate(positions, prompts) == expected


def test_a_model_that_forgets_padding_once_it_goes_on_from_its_cache_is_noticed(model):
    torch.manual_seed(0)
    own = LlamaForCausalLM(model.config).eval()
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = own.prepare_inputs_for_generation

    def forgetful(*args, **kwargs):
        inputs = plain(*args, **kwargs)
        mask = inputs.get("attention_mask")
        if inputs["input_ids"].shape[1] == 1 and mask is not None:
            inputs["attention_mask"] = torch.ones_like(mask)
        return inputs

    prompts = [
        TokenizedPrompt(i, list(range(3, 3 + n)), "", str(i)) for i, n in enumerate((4, 9, 2))
    ]
    expected = [answer for prompt in prompts for answer in generate(own, [prompt])]
    assert generate(own, prompts) == expected
    forgets = copy_of(own, forgetful)
    assert not reads_padding(forgets)
    assert generate(forgets, prompts) == expected


def test_a_model_that_generates_nothing_is_refused_with_the_reason(model):
    silent = LlamaForCausalLM(model.config).eval()

    def broken(*args, **kwargs):
        raise AttributeError("no number of layers")

    silent.prepare_inputs_for_generation = broken
    with pytest.raises(ConfigError, match="generates no answers: AttributeError: no number"):
        reads_padding(silent)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4))
def test_batches_of_one_length_hold_every_record_once(lengths, world):
    found = []
    for rank in range(world):
        for batch in plan_batches(
            lengths, batch_tokens=40, rank=rank, world_size=world, new_tokens=3, equal=True
        ):
            if batch.counted:
                found += batch.positions
                assert len({lengths[i] for i in batch.positions}) == 1
    assert sorted(found) == list(range(len(lengths)))
