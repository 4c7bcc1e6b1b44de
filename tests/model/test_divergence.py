"""Divergences and their gradients against the plain formulas on full logits, in any chunks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema.distill import Divergence
from launcher.model import target_logits
from launcher.model.divergence import Measure, TopTeacher, WholeTeacher, most_likely
from launcher.model.head import TargetHead
from launcher.objectives.distill.loss import Mixture
from support.distillation import divergence, grouped
from support.heads import Tiny, row_of

KINDS = list(Divergence)


def expected_loss(model, teacher_logits, row, kind, beta, share, heat, size, tokens=None):
    """The mixture from full logits in double precision, with torch's own gradients."""
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    ce = torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
    p = (teacher_logits[:, :size] / heat).softmax(-1)
    q = (logits[:, :size] / heat).softmax(-1)
    if tokens is not None:
        p, q = grouped(p, tokens), grouped(q, tokens)
    both = (1 - share) * ce + share * heat**2 * divergence(kind, beta, p, q)
    return (both if row.weights is None else both * row.weights).sum()


def gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    beta=st.sampled_from([0.1, 0.5, 0.8]),
    heat=st.sampled_from([0.7, 1.0, 3.0]),
    share=st.sampled_from([0.3, 1.0]),
    vocab=st.integers(3, 17),
    filled=st.integers(0, 4),
    count=st.integers(0, 17),
    weighted=st.booleans(),
    scaled=st.booleans(),
    chunk=st.integers(1, 100),
    scale=st.sampled_from([1.0, 0.37]),
    seed=st.integers(0, 9),
)
def test_loss_and_gradients_equal_the_plain_formula(
    kind, beta, heat, share, vocab, filled, count, weighted, scaled, chunk, scale, seed
):
    torch.manual_seed(seed)
    after = (lambda x: x * 0.5) if scaled else None
    model, teacher = Tiny(vocab + filled, 6, True, after).double(), Tiny(vocab + 2, 9, False)
    with torch.no_grad():
        teacher.lm_head.weight *= 4
    tokens = torch.randint(0, vocab, (12,)).tolist()
    row = row_of(tokens, [0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    if weighted:
        row.weights = torch.rand(len(row.targets)) * 3
    whole = teacher(row.input_ids.unsqueeze(0)).logits[0][row.target_index].detach()
    measure, count = Measure(kind, heat, beta), min(count, vocab)
    known = None
    if count:
        known, log_probs = most_likely(whole, count, vocab, heat)
        of = TopTeacher(known, log_probs, vocab, measure)
        known = known.long()
    else:
        of = WholeTeacher(TargetHead(teacher).logits_by_part(teacher, row), vocab, measure)
    wanted = expected_loss(model, whole.double(), row, kind, beta, share, heat, vocab, known)
    (wanted * scale).backward()
    expected = gradients(model)
    before = dict(target_logits.CHUNK_ELEMENTS)
    target_logits.CHUNK_ELEMENTS["cpu"] = chunk
    try:
        head = TargetHead(model)
        mixture = Mixture(row.targets, row.weights, of, share=share, temperature=heat)
        loss = head.learn(model, row, mixture)
        (loss * scale).backward()
    finally:
        target_logits.CHUNK_ELEMENTS.update(before)
    assert (head.head is None) == scaled
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    data, divergence = mixture.sums
    both = (1 - share) * data + share * heat**2 * divergence
    torch.testing.assert_close(both, loss.detach(), rtol=1e-5, atol=1e-5)
    for got, correct in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, correct, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    heat=st.sampled_from([0.7, 1.0, 1.6]),
    vocab=st.integers(3, 17),
    filled=st.integers(0, 4),
    scaled=st.booleans(),
    chunk=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_divergences_by_target_stand_beside_log_probabilities(
    kind, heat, vocab, filled, scaled, chunk, seed
):
    torch.manual_seed(seed)
    after = (lambda x: x * 0.5) if scaled else None
    model, teacher = Tiny(vocab + filled, 6, True, after), Tiny(vocab + 2, 9, False)
    row = row_of(torch.randint(0, vocab, (10,)).tolist(), [0, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    weights = torch.randn(3, len(row.targets))
    logits = model(row.input_ids.unsqueeze(0)).logits[0][row.target_index]
    of = teacher(row.input_ids.unsqueeze(0)).logits[0][row.target_index].detach()
    log_p = (logits / heat).log_softmax(-1)
    p, q = ((x[:, :vocab] / heat).softmax(-1) for x in (of, logits))
    expected = (
        log_p.gather(1, row.targets[:, None])[:, 0],
        -(log_p.exp() * log_p).sum(-1),
        divergence(kind, 0.3, p, q),
    )
    (torch.stack(expected) * weights).sum().backward()
    wanted = gradients(model)
    before = dict(target_logits.CHUNK_ELEMENTS)
    target_logits.CHUNK_ELEMENTS["cpu"] = chunk
    try:
        asked = TargetHead(teacher).logits_by_part(teacher, row)
        known = WholeTeacher(asked, vocab, Measure(kind, heat, 0.3))
        head = TargetHead(model)
        found = head.distributions(model, row, heat, known)
        (torch.stack(found) * weights).sum().backward()
        both = [(found, gradients(model))]
        model.zero_grad()

        def judge(part_of, part):
            return (torch.stack(part_of) * weights[:, part]).sum()

        total, found = head.learn_by_token(model, row, heat, judge, known)
        total.backward()
        both.append((found, gradients(model)))
    finally:
        target_logits.CHUNK_ELEMENTS.update(before)
    assert (head.head is None) == scaled
    for found, got in both:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_fewer_tokens_never_make_it_larger_and_all_make_it_exact(kind, count, seed):
    torch.manual_seed(seed)
    of, logits = 4 * torch.randn(5, 20), 3 * torch.randn(5, 20)
    measure, part = Measure(kind, 2.0, 0.3), slice(0, 5)
    exact, gradient = WholeTeacher(lambda own: of[own], 20, measure).against(logits, part)
    bound, slope = TopTeacher(*most_likely(of, count, 20, 2.0), 20, measure).against(logits, part)
    assert (bound >= -1e-6).all()
    assert (bound <= exact + 1e-5).all()
    if count == 20:
        torch.testing.assert_close(bound, exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_zero_for_equal_models_and_stays_finite_for_far_ones(kind):
    logits = torch.tensor([[80.0, 0.0, -60.0, -120.0]])
    measure, part = Measure(kind), slice(0, 1)
    for other, largest in ((logits, 1e-6), (-logits, math.inf)):
        for of in (
            WholeTeacher(lambda own, given=other: given[own], 4, measure),
            TopTeacher(*most_likely(other, 2, 4, 1.0), 4, measure),
            TopTeacher(*most_likely(other, 4, 4, 1.0), 4, measure),
        ):
            found, gradient = of.against(logits, part)
            assert 0 <= found.item() <= largest
            assert found.isfinite().all()
            assert gradient.isfinite().all()


def test_tokens_that_fill_up_an_embedding_do_not_count():
    torch.manual_seed(0)
    of, logits = torch.randn(3, 9), torch.randn(3, 8)
    measure, part = Measure(Divergence.forward), slice(0, 3)
    found, gradient = WholeTeacher(lambda own: of[own], 6, measure).against(logits, part)
    other, _ = WholeTeacher(lambda own: of[own, :6], 6, measure).against(logits[:, :6], part)
    torch.testing.assert_close(found, other)
    assert gradient.shape == logits.shape
    assert not gradient[:, 6:].any()
    tokens, log_probs = most_likely(of, 6, 6, 1.0)
    assert tokens.max() < 6
    torch.testing.assert_close(log_probs[:, :-1].exp().sum(-1), torch.ones(3))
