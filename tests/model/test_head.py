"""The fused head against the plain formula: loss, gradients, scores, models it must leave alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.model import target_logits
from launcher.model.head import TargetHead
from support.heads import Tiny, row_of
from support.memory import peak_bytes


def plain(model, row, smoothing=0.0):
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    losses = torch.nn.functional.cross_entropy(
        logits, row.targets, reduction="none", label_smoothing=smoothing
    )
    return losses.sum() if row.weights is None else (losses * row.weights).sum()


def gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.integers(2, 40),
    tokens=st.lists(st.integers(0, 1), min_size=2, max_size=30),
    data=st.data(),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    chunk=st.integers(1, 200),
    scale=st.sampled_from([1.0, 0.37]),
    weighted=st.booleans(),
)
def test_loss_and_gradients_equal_the_plain_formula(
    vocab, tokens, data, bias, smoothing, chunk, scale, weighted
):
    torch.manual_seed(0)
    model = Tiny(vocab, 6, bias).double()
    learned = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    row = row_of(tokens, learned)
    if weighted:
        row.weights = torch.rand(len(row.targets)) * 3
    (plain(model, row, smoothing) * scale).backward()
    expected = gradients(model)
    expected_loss = plain(model, row, smoothing)
    before = dict(target_logits.CHUNK_ELEMENTS)
    target_logits.CHUNK_ELEMENTS["cpu"] = chunk
    try:
        head = TargetHead(model)
        loss = head.loss(model, row, smoothing)
        (loss * scale).backward()
    finally:
        target_logits.CHUNK_ELEMENTS.update(before)
    assert head.head is not None
    # The loss is an fp32 scalar by contract.
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # sums in fp32


def test_frozen_head_gets_no_gradient_and_the_body_does():
    model = Tiny(11, 4, bias=False)
    model.lm_head.weight.requires_grad_(False)
    TargetHead(model).loss(model, row_of([1, 2, 3], [0, 1, 1])).backward()
    assert model.lm_head.weight.grad is None
    assert model.embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "after",
    [
        lambda x: 3 * torch.tanh(x / 3),
        lambda x: x * 0.5,
        lambda x: x + 0,
        lambda x: x[..., :11],
        lambda x: x.view(*x.shape[:-1], 13),
    ],
)
def test_models_that_change_their_logits_are_noticed(after):
    torch.manual_seed(0)
    model = Tiny(13, 5, bias=False, after=after)
    row = row_of([1, 4, 2, 8, 5], [0, 1, 0, 1, 1])
    plain(model, row).backward()
    expected = gradients(model)
    head = TargetHead(model)
    loss = head.loss(model, row)
    loss.backward()
    assert head.head is None
    torch.testing.assert_close(loss, plain(model, row))
    for got, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("after", [None, lambda x: x * 0.5])
@pytest.mark.parametrize(
    "loss",
    [TargetHead.loss, lambda *of: -TargetHead.log_probs(*of).sum()],
    ids=["loss", "log_probs"],
)
def test_hits_are_counted_beside_the_loss(after, loss):
    torch.manual_seed(0)
    model = Tiny(5, 4, bias=True, after=after)
    row = row_of([3, 1, 4, 1, 0, 2, 2, 1], [0, 1, 1, 0, 1, 1, 0, 1])
    plain(model, row).backward()
    expected = gradients(model)
    _, correct = TargetHead(model).score(model, row)
    head = TargetHead(model, counts_hits=True)
    loss(head, model, row).backward()
    assert head.hits is not None
    assert int(head.hits) == int(correct.sum())
    for got, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_scores_are_those_of_the_logits():
    torch.manual_seed(0)
    model = Tiny(17, 5, bias=True)
    row = row_of([3, 1, 4, 1, 5, 9, 2, 6], [0, 1, 1, 0, 1, 1, 0, 1])
    losses, correct = TargetHead(model).score(model, row)
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    wanted = torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
    torch.testing.assert_close(losses, wanted)
    assert correct.tolist() == (logits.argmax(-1) == row.targets).tolist()


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("work", ["loss", "log_probs", "score"])
def test_chunks_live_one_at_a_time(monkeypatch, work, is_half):
    vocab, width, chunk = 5000, 4, 10
    monkeypatch.setitem(target_logits.CHUNK_ELEMENTS, "cpu", chunk * vocab)
    model = Tiny(vocab, width, bias=False)
    if is_half:
        model.bfloat16()
    head = TargetHead(model)

    def peak(chunks):
        row = row_of([1] * (chunk * chunks + 1), [1] * (chunk * chunks + 1))

        def run():
            found = getattr(head, work)(model, row)
            if work != "score":
                found.sum().backward()
                model.zero_grad()

        return peak_bytes(run)

    grown = peak(4) - peak(1)
    assert grown < 4 * chunk * vocab / 4, grown


def test_the_head_still_gives_logits_outside_of_a_loss():
    model = Tiny(9, 4, bias=False)
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    TargetHead(model)
    assert torch.equal(model(ids).logits, before)


class Strict(Tiny):
    """A model that knows neither which logits are wanted nor anything else beside its tokens."""

    def forward(self, input_ids, position_ids=None):
        return super().forward(input_ids)


def test_a_model_that_gives_all_its_logits_is_asked_for_what_it_takes():
    torch.manual_seed(0)
    row = row_of([1, 4, 2, 8, 5], [0, 1, 0, 1, 1])
    for after in (None, lambda x: x * 0.5):
        model = Strict(13, 5, bias=False, after=after)
        head = TargetHead(model)
        torch.testing.assert_close(head.loss(model, row), plain(model, row))


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.integers(2, 40),
    tokens=st.lists(st.integers(0, 1), min_size=2, max_size=30),
    data=st.data(),
    bias=st.booleans(),
    chunk=st.integers(1, 200),
    capped=st.booleans(),
)
def test_log_probabilities_and_gradients_equal_the_plain_formula(
    vocab, tokens, data, bias, chunk, capped
):
    torch.manual_seed(0)
    model = Tiny(vocab, 6, bias, after=(lambda x: 2 * torch.tanh(x / 2)) if capped else None)
    learned = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    row = row_of(tokens, learned)
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    expected = logits.log_softmax(-1).gather(1, row.targets[:, None])[:, 0]
    # Each one has a gradient of its own, as a loss of sums and differences gives it.
    factors = torch.randn(len(row.targets))
    (expected * factors).sum().backward()
    wanted = gradients(model)
    before = dict(target_logits.CHUNK_ELEMENTS)
    target_logits.CHUNK_ELEMENTS["cpu"] = chunk
    try:
        head = TargetHead(model)
        found = head.log_probs(model, row)
        (found * factors).sum().backward()
    finally:
        target_logits.CHUNK_ELEMENTS.update(before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (head.head is None) is (capped and len(row.targets) > 0) or not len(row.targets)


@pytest.mark.parametrize("after", [None, lambda x: x * 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_stand_beside_log_probabilities_with_their_gradients(
    monkeypatch, after, temperature
):
    monkeypatch.setitem(target_logits.CHUNK_ELEMENTS, "cpu", 3 * 7)  # several chunks
    torch.manual_seed(0)
    model = Tiny(7, 4, bias=True, after=after)
    row = row_of([3, 1, 4, 1, 5, 0, 2, 6, 1], [0, 1, 1, 0, 1, 1, 1, 0, 1])
    of_log_probs, of_entropies = torch.randn(2, len(row.targets)).unbind()
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index] / temperature
    log_p = logits.log_softmax(-1)
    expected = log_p.gather(1, row.targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    (expected[0] * of_log_probs + expected[1] * of_entropies).sum().backward()
    wanted = gradients(model)
    head = TargetHead(model)
    for _ in range(2):  # the first call tells whether the model changes its logits
        model.zero_grad()
        found = head.distributions(model, row, temperature)[:2]
        (found[0] * of_log_probs + found[1] * of_entropies).sum().backward()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(gradients(model), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_of_tokens_in_fp16_are_scaled_before_they_are_rounded():
    torch.manual_seed(0)
    model = Tiny(7, 4, bias=False).half()
    row = row_of([3, 1, 4, 1, 5], [0, 1, 1, 1, 1])
    found = []
    for scale in (1.0, 2.0**16):
        model.zero_grad()
        total, _ = TargetHead(model).learn_by_token(
            model, row, 1.0, lambda found, part: 1e-9 * found.log_probs.sum()
        )
        (scale * total).backward()
        found.append(model.lm_head.weight.grad.double() / scale)
    assert not found[0].any()
    assert 1e-10 < found[1].abs().max() < 1e-8


@pytest.mark.parametrize("after", [None, lambda x: x * 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("learned", [(0, 1, 1, 0, 1, 1, 1, 0, 1), (0,) * 9])
def test_a_loss_by_token_is_that_of_all_distributions(monkeypatch, after, temperature, learned):
    monkeypatch.setitem(target_logits.CHUNK_ELEMENTS, "cpu", 3 * 7)  # several chunks
    torch.manual_seed(0)
    model = Tiny(7, 4, bias=True, after=after)
    row = row_of([3, 1, 4, 1, 5, 0, 2, 6, 1], learned)
    factors, head = torch.randn(len(row.targets)), TargetHead(model)

    def judge(found, part=slice(None)):
        return (factors[part] * found.log_probs.exp() - found.entropies.square()).sum()

    for _ in range(2):  # the first call tells whether the model changes its logits
        model.zero_grad()
        expected = head.distributions(model, row, temperature)
        loss = judge(expected)
        loss.backward()
        wanted = gradients(model)
        model.zero_grad()
        found, read = head.learn_by_token(model, row, temperature, judge)
        (2 * found).backward()
        torch.testing.assert_close(found, loss)
        assert read.divergences is None
        for one, other in zip(read[:2], expected[:2], strict=True):
            torch.testing.assert_close(one, other.detach())
        for one, other in zip(gradients(model), wanted, strict=True):
            torch.testing.assert_close(one, 2 * other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "vocab", "rows"),
    [
        ("cuda", 151_936, 768),  # 883 fit: whole tiles of 128
        ("cuda", 1 << 21, 64),  # no whole tile fits
        ("cpu", 5_000, 209),
        ("cpu", 1 << 21, 1),
    ],
)
def test_chunks_on_a_gpu_are_whole_tiles(device, vocab, rows):
    assert target_logits.chunk_rows(vocab, torch.device(device)) == rows


def test_only_a_gpu_adds_products_of_half_numbers_to_whole_ones():
    assert not target_logits._sums_wide(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    "after", [None, lambda x: x * 0.5, lambda x: x[..., :5], lambda x: x.view(*x.shape[:-1], 7)]
)
def test_logits_by_part_are_those_of_the_model(after):
    torch.manual_seed(0)
    model = Tiny(7, 5, bias=True, after=after)  # an output of the body could be taken for logits
    row = row_of([3, 1, 4, 1, 0, 2, 2, 1], [0, 1, 1, 0, 1, 1, 0, 1])
    head = TargetHead(model)
    given = head.logits_by_part(model, row)
    with torch.no_grad():
        expected = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    for part in (slice(0, 2), slice(2, 5)):
        torch.testing.assert_close(given(part), expected[part])
        assert not given(part).requires_grad
