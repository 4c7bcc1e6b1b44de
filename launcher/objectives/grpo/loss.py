"""Losses of sampled answers. All are minimised; a positive advantage makes an answer likelier.

With p the model's probability of token t of answer i, q that of the model that began the rollout
(the same numbers at its first update), A the answer's advantage and r = p / q, the loss of a token
is, in its policy part,

grpo       -min(r A, clip(r) A), mean over the tokens of each answer, then over answers (GRPO, Shao
           et al. 2024, arXiv:2402.03300)
dr_grpo    the same, summed over tokens and divided by answers x `max_new_tokens` (with an
           environment x `max_turns`), so that length changes no weight (Dr. GRPO, Liu et al. 2025,
           arXiv:2503.20783)
dapo       the same, mean over all tokens of the batch (DAPO, Yu et al. 2025, arXiv:2503.14476)
gspo       the same with one ratio an answer, exp(mean over its tokens of log r); mean over answers
           (GSPO, Zheng et al. 2025, arXiv:2507.18071)
cispo      -min(r, 1 + clip_high) A log p with the ratio as a mere weight, mean over all tokens of
           the batch (CISPO, MiniMax 2025, arXiv:2506.13585)
rloo       -min(r A, clip(r) A) with one ratio an answer, exp(sum over its tokens of log r); mean
           over answers (RLOO, Ahmadian et al. 2024, arXiv:2402.14740)
reinforce  -A log p, summed over the tokens of each answer, mean over answers (Williams 1992)

clip(r) holds r within 1 - `clip_low` and 1 + `clip_high`. The policy part of each token, or answer
where the ratio is an answer's, is multiplied by min(q / s, `sampler_cap`), s the probability by
which the sampler drew it, without a gradient (truncated importance sampling, Yao et al. 2025).

To it is added, by token with the same normalisation, `beta` x an estimate of the divergence from
the reference, with d = log p - log reference (Schulman 2020, "Approximating KL KlEstimator"):

k1         d; its gradient is that of the expected d, (d) grad log p: the gradient of d itself is 0
           in the mean
k2         d^2 / 2
k3         exp(-d) - 1 + d

less `entropy_bonus` x the entropy of the distribution that the token was drawn from.

With a teacher, whose probability of the token is u, the advantage of each token is

A + `teacher_weight` x (log u - log q)

(on-policy distillation): in the mean over what is drawn that is less the divergence KL(model,
teacher), so that the model goes to where the teacher is likely, on its own answers (MiniLLM, Gu et
al. 2023, arXiv:2306.08543; GKD with all data from the student and the reverse divergence, Agarwal
et al. 2023, arXiv:2306.13649). A is 0 without a grader.

With `teacher_divergence` the advantage is A alone, and to the loss of each token is added, with the
same normalisation,

`teacher_weight` x D(teacher, model)

the divergence of the whole distributions that the token stands in, with its gradient; D is that of
`launcher.model.divergence`. Which answers are drawn has no part in the gradient (GKD).

All probabilities are those at `temperature`. Weights of records multiply their answers' losses and
count in what they are divided by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.config.schema.reinforce import GrpoConfig, KlEstimator, PolicyLoss

#: Losses whose ratio is that of a whole answer.
_OF_ANSWERS = (PolicyLoss.gspo, PolicyLoss.rloo)
#: Losses that are a mean over the tokens of each answer first.
_OVER_ANSWER = (PolicyLoss.grpo, PolicyLoss.gspo, PolicyLoss.rloo)


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The answers of a row. By target, fp32 [targets], unless it says otherwise."""

    log_probs: Tensor
    """With gradients."""
    entropies: Tensor
    """With gradients."""
    old: Tensor
    """Log-probabilities of the model that began the rollout."""
    sampler: Tensor
    """Log-probabilities by which the tokens were drawn."""
    reference: Tensor | None
    """Log-probabilities of the model before training."""
    teacher: Tensor | None
    """Log-probabilities of the teacher."""
    divergences: Tensor | None
    """Of the model's distributions from the teacher's, with gradients."""
    documents: Tensor
    """int64 [targets]: which answer each token is of."""
    lengths: Tensor
    """fp32 [answers]: tokens."""
    advantages: Tensor
    """fp32 [answers]"""
    weights: Tensor
    """fp32 [answers]: weights of their records."""


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """The loss sum of a row, with gradients, and sums over its tokens, each with its weight."""

    total: Tensor
    clipped: Tensor
    """Of those whose ratio was clipped."""
    divergence: Tensor
    behind_teacher: Tensor
    """Of log-probabilities less those of the teacher."""
    from_teacher: Tensor
    """Of divergences from the teacher."""
    gap: Tensor
    """Of absolute differences between the trainer's and the sampler's log-probabilities."""
    entropy: Tensor
    tokens: Tensor


def is_by_token(options: GrpoConfig) -> bool:
    """Whether the loss of a row is the sum of what `judge` makes of parts of its tokens."""
    return options.loss not in _OF_ANSWERS


def judge(answers: AnswerTokens, options: GrpoConfig) -> PolicyTerms:
    """The loss of a row's answers, divided by nothing but what an answer is divided by itself."""
    documents = answers.documents
    weights, lengths = answers.weights[documents], answers.lengths[documents]
    advantages = answers.advantages[documents]
    behind = torch.zeros_like(answers.old)
    if answers.teacher is not None:
        behind = answers.old - answers.teacher
        advantages = advantages - options.teacher_weight * behind
    logs = _level(answers.log_probs - answers.old, answers, options)
    ratios = logs.exp()
    policy, clipped = _policy(ratios, advantages, answers.log_probs, options)
    if options.sampler_cap is not None:
        drift = _level(answers.old - answers.sampler, answers, options)
        policy = policy * drift.exp().clamp(max=options.sampler_cap)
    losses = policy
    apart = torch.zeros_like(answers.old)
    if answers.divergences is not None:
        apart = answers.divergences.detach()
        losses = losses + options.teacher_weight * answers.divergences
    divergence = torch.zeros_like(answers.old)
    if answers.reference is not None:
        estimates = _divergence(answers.log_probs, answers.reference, options.kl)
        divergence = estimates.detach()
        losses = losses + options.beta * estimates
    if options.entropy_bonus:
        losses = losses - options.entropy_bonus * answers.entropies
    shares = weights / lengths if options.loss in _OVER_ANSWER else weights
    return PolicyTerms(
        total=(losses * shares).sum(),
        clipped=(clipped * weights).sum(),
        divergence=(divergence * weights).sum(),
        behind_teacher=(behind * weights).sum(),
        from_teacher=(apart * weights).sum(),
        gap=((answers.old - answers.sampler).abs() * weights).sum(),
        entropy=(answers.entropies.detach() * weights).sum(),
        tokens=weights.sum(),
    )


def _level(logs: Tensor, answers: AnswerTokens, options: GrpoConfig) -> Tensor:
    """Logarithms of ratios by token [targets] as the loss takes them: as they are, or of whole
    answers."""
    if options.loss not in _OF_ANSWERS:
        return logs
    sums = logs.new_zeros(len(answers.lengths)).index_add(0, answers.documents, logs)
    if options.loss is PolicyLoss.gspo:
        sums = sums / answers.lengths.clamp(min=1)
    return sums[answers.documents]


def _policy(
    ratios: Tensor, advantages: Tensor, log_probs: Tensor, options: GrpoConfig
) -> tuple[Tensor, Tensor]:
    """The policy part of each token's loss, and which of them are clipped; both [targets]."""
    low, high = options.clip
    if options.loss is PolicyLoss.reinforce:
        return -advantages * log_probs, torch.zeros_like(ratios)
    assert high is not None
    if options.loss is PolicyLoss.cispo:
        factors = ratios.detach().clamp(max=1 + high)
        return -factors * advantages * log_probs, (ratios.detach() > 1 + high).to(ratios.dtype)
    assert low is not None
    kept = ratios.clamp(1 - low, 1 + high)
    with torch.no_grad():
        clipped = ((ratios < 1 - low) & (advantages < 0)) | ((ratios > 1 + high) & (advantages > 0))
    return -torch.minimum(ratios * advantages, kept * advantages), clipped.to(ratios.dtype)


def _divergence(log_probs: Tensor, reference: Tensor, estimator: KlEstimator) -> Tensor:
    """An estimate of the divergence from the reference at each token [targets]."""
    ahead = log_probs - reference
    if estimator is KlEstimator.k1:
        # Its value, with the gradient of its expectation.
        return ahead.detach() * (1 + log_probs - log_probs.detach())
    if estimator is KlEstimator.k2:
        return ahead.square() / 2
    return (-ahead).expm1() + ahead
