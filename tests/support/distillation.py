"""Divergences by their definition, from whole distributions and with torch's own gradients."""

import torch

from launcher.config.schema.distill import Divergence


def divergence(kind, beta, p, q):
    """Of each line of two distributions [t, groups], teacher and student, by the definition."""

    def kl(one, other):
        return (one * (one.log() - other.log())).sum(-1)

    if kind is Divergence.forward:
        return kl(p, q)
    if kind is Divergence.reverse:
        return kl(q, p)
    mixed = beta * p + (1 - beta) * q
    return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)


def grouped(chances, tokens):
    """[t, V] summed over `tokens` [t, k], each by itself, and all others; nothing if none are."""
    known = chances.gather(1, tokens)
    if tokens.shape[1] == chances.shape[1]:
        return known
    others = torch.ones_like(chances).scatter(1, tokens, 0.0)
    return torch.cat([known, (chances * others).sum(-1, keepdim=True)], 1)
