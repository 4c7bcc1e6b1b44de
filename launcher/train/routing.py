"""Routers of experts in training: the load-balancing loss over the global batch, and their load.

The loss is that of Switch Transformers (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6) as
transformers computes it, with all layers in one: `E * sum_e f_e * P_e`, where `f_e` is how often a
token chooses expert `e`, `P_e` the mean probability that a router gives it, and both are means over
tokens and layers. It is no mean over micro-batches. But `f_e` has no gradient, and `P_e` is linear
in tokens: with the choices of the global batch at hand, each token's part of the gradient is its
own. It is put into backward where the router's weights leave it, as Megatron-LM does
(`MoEAuxLossAutoScaler`): so layers that are recomputed, or gathered by ZeRO-3, need nothing more.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.distributed import collectives
from launcher.model.adapter import inner_model

#: Below this `RouterLoad.use` experts count as out of balance: half of them would do.
BALANCED = 0.5
#: Choices an expert on average, below which chance alone is out of balance.
_ENOUGH = 16


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """What the routers did with the tokens of a global batch."""

    names: Sequence[str]
    """Routers, from the first layer on."""
    shares: list[list[float]]
    """By router and expert: share of the router's choices that fell on the expert."""
    entropy: float
    """Of the routers' probabilities, mean over tokens and routers, in nats."""
    aux: float
    """The load-balancing loss, not multiplied by its coefficient."""
    choices: float
    """Choices an expert of one router, on average."""

    @property
    def unused(self) -> float:
        """Share of experts, over all routers, that no token has chosen."""
        flat = [share for router in self.shares for share in router]
        return sum(share == 0 for share in flat) / len(flat)

    @property
    def uses(self) -> list[float]:
        """By router: how many experts used evenly would be as diverse, as a share of all; the
        exponential of the entropy of the shares, over the number of experts."""
        return [
            math.exp(-sum(s * math.log(s) for s in router if s)) / len(router)
            for router in self.shares
        ]

    @property
    def use(self) -> float:
        """The least of `uses`."""
        return min(self.uses)

    @property
    def complaint(self) -> str:
        """What to warn of; empty where experts are in balance, or tokens too few to tell."""
        if self.choices < _ENOUGH or self.use >= BALANCED:
            return ""
        at = self.uses.index(self.use)
        most = max(self.shares[at])
        return (
            f"experts of {self.names[at]} are out of balance: {most:.0%} of the choices fall on one"
            f" of {len(self.shares[at])}, and {self.unused:.0%} of all experts are not used"
            f" (expert_use {self.use:.2f}, below {BALANCED})"
        )


class Routing:
    """The routers of a model in training. Its methods are called by all ranks together."""

    def __init__(self, model: nn.Module, coefficient: float | None, world_size: int) -> None:
        """`coefficient` of the load-balancing loss; None is the model's own, where its config has
        `output_router_logits`. Raises `ConfigError` for one on a model without such a loss."""
        inner = inner_model(model)
        kinds = _router_kinds(inner)
        self._routers: dict[nn.Module, str] = {
            m: n for n, m in inner.named_modules() if isinstance(m, kinds)
        }
        self.coefficient = _coefficient(inner, coefficient, bool(self._routers))
        self._world_size = world_size
        self._is_on = self._looks = self._is_settled = False
        self._keep: Tensor | None = None
        self._counted: dict[nn.Module, list[Tensor]] = {}
        self._seen: set[nn.Module] = set()
        self._inner = inner
        self.pull: Tensor | None = None
        """fp32 [experts]: the gradient of the loss of the whole step by the sum of a token's
        probabilities; what `_Pull` reads in backward."""

    def attach(self) -> None:
        """Follow what the routers do, from now on."""
        for router in self._routers:
            router.register_forward_hook(self._routed)
        if self._routers:
            self._inner.base_model.register_forward_pre_hook(self._begin, with_kwargs=True)

    @property
    def learns(self) -> bool:
        """Whether the load-balancing loss is part of what is learned."""
        return self.coefficient > 0

    @property
    def watches(self) -> bool:
        """Whether there is something to watch."""
        return bool(self._routers)

    def begin(self) -> None:
        """Forget the step before."""
        self._counted, self.pull, self._is_settled = {}, None, False

    @contextmanager
    def row(self, counts: bool = True) -> Iterator[None]:
        """The forward of a row, and its backward; nothing `counts` of one that fills up."""
        self._is_on, self._seen = counts, set()
        try:
            yield
        finally:
            self._is_on, self._keep = False, None

    @torch.no_grad()
    def look(self, passes: Sequence[Callable[[], Any]], counts: Sequence[bool]) -> None:
        """Count the choices in rows whose losses are to come, by a forward of each."""
        self._looks = True
        try:
            for run, is_counted in zip(passes, counts, strict=True):
                with self.row(is_counted):
                    run()
        finally:
            self._looks = False

    def settle(self) -> None:
        """Make of what was counted what the gradient of a token needs."""
        counts, _, _, tokens = self._totals()
        rows = sum(tokens)
        by_expert = torch.tensor(counts).sum(0)
        factor = self.coefficient * self._world_size * by_expert.numel() / rows**2
        device = next(iter(self._counted.values()))[0].device
        self.pull = (by_expert * factor).float().to(device)
        self._is_settled = True

    def load(self) -> RouterLoad | None:
        """What was counted since `begin`; None where no router gave what can be counted."""
        counts, chances, entropies, tokens = self._totals(optional=True)
        if not counts or not all(tokens):
            return None
        rows, experts = sum(tokens), len(counts[0])
        aux = math.nan
        if len({len(c) for c in counts}) == 1:
            pairs = zip(zip(*counts, strict=True), zip(*chances, strict=True), strict=True)
            aux = experts * sum(sum(c) / rows * (sum(p) / rows) for c, p in pairs)
        return RouterLoad(
            [name for router, name in self._routers.items() if router in self._counted],
            [[c / sum(router) for c in router] for router in counts],
            sum(entropies) / rows,
            aux,
            sum(map(sum, counts)) / sum(map(len, counts)),
        )

    def _totals(
        self, *, optional: bool = False
    ) -> tuple[list[list[float]], list[list[float]], list[float], list[float]]:
        """Of the global batch, by router: choices and summed probabilities by expert, summed
        entropy, tokens."""
        found = [self._counted[router] for router in self._routers if router in self._counted]
        if not found:
            if optional:
                return [], [], [], []
            raise ConfigError(
                "its routers do not give logits, weights and choices",
                where="train.router_aux",
                hint="set train.router_aux=0",
            )
        flat = torch.cat([torch.cat(parts) for parts in found]).tolist()
        flat = collectives.sum_over_ranks(flat)
        counts, chances, entropies, tokens, at = [], [], [], [], 0
        for parts in found:
            size = len(parts[0])
            counts.append(flat[at : at + size])
            chances.append(flat[at + size : at + 2 * size])
            entropies.append(flat[at + 2 * size])
            tokens.append(flat[at + 2 * size + 1])
            at += 2 * size + 2
        return counts, chances, entropies, tokens

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._keep = (
            mask.reshape(-1).float() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        )

    def _routed(self, router: nn.Module, args: Any, output: Any) -> Any:
        """Count what a router chose, and have its weights carry the gradient of the loss."""
        if not (self._is_on and _is_usual(output)):
            return None
        logits, weights, chosen, *rest = output
        runs = self._looks or torch.is_grad_enabled()
        if runs and not self._is_settled and router not in self._seen:
            self._seen.add(router)
            self._count(router, logits.detach(), chosen)
        if self._looks or not self.learns or not torch.is_grad_enabled():
            return None
        return (logits, _Pull.apply(weights, logits, self._keep, self), chosen, *rest)

    @torch.no_grad()
    def _count(self, router: nn.Module, logits: Tensor, chosen: Tensor) -> None:
        logits = logits.reshape(-1, logits.shape[-1]).float()
        chosen = chosen.reshape(len(logits), -1)
        keep = logits.new_ones(len(logits)) if self._keep is None else self._keep
        if hasattr(router, "e_score_correction_bias"):  # it weighs experts one by one
            scores = logits.sigmoid()
            chances = scores / scores.sum(-1, keepdim=True)
        else:
            chances = logits.softmax(-1)
        counts = logits.new_zeros(logits.shape[-1])
        counts.scatter_add_(0, chosen.reshape(-1), keep.repeat_interleave(chosen.shape[1]))
        entropy = -torch.special.xlogy(chances, chances).sum(-1)
        sums = torch.stack([(entropy * keep).sum(), keep.sum()])
        new = [counts, keep @ chances, sums]
        # In fp64: counts of a long batch would not be whole numbers in fp32.
        new = [part.double() for part in new]
        had = self._counted.get(router)
        self._counted[router] = (
            new if had is None else [a + b for a, b in zip(had, new, strict=True)]
        )


class _Pull(torch.autograd.Function):
    """A router's weights as they are; in backward its logits get the gradient of the load-balancing
    loss too, by the choices that are known by then."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, logits: Tensor, keep: Tensor | None, routing: Routing
    ) -> Tensor:
        ctx.save_for_backward(logits, keep)
        ctx.routing = routing
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits, keep = ctx.saved_tensors
        pull = ctx.routing.pull
        assert pull is not None
        chances = logits.float().softmax(-1)
        found = chances * (pull - (chances @ pull).unsqueeze(-1))
        if keep is not None:
            found = found * keep.view(*found.shape[:-1], 1)
        return gradient, found.to(logits.dtype), None, None


def _is_usual(output: Any) -> bool:
    return (
        isinstance(output, tuple)
        and len(output) >= 3
        and all(isinstance(part, Tensor) for part in output[:3])
        and not output[2].is_floating_point()
    )


def _router_kinds(inner: Any) -> tuple[type[nn.Module], ...]:
    """The classes of routers, as transformers names them to record their logits."""
    kinds = set()
    for module in inner.modules():
        known = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        for one in known if isinstance(known, list) else [known]:
            kind = getattr(one, "target_class", one)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                kinds.add(kind)
    return tuple(kinds)


def _coefficient(inner: Any, given: float | None, has_routers: bool) -> float:
    config = inner.config.get_text_config()
    own = getattr(config, "router_aux_loss_coef", None)
    has_loss = hasattr(sys.modules[type(inner).__module__], "load_balancing_loss_func")
    if given is None:
        asks = getattr(config, "output_router_logits", False)
        return float(own or 0.0) if asks and has_loss and has_routers else 0.0
    if given and not has_routers:
        raise ConfigError(
            f"{given} for {type(inner).__name__}, which has no experts",
            where="train.router_aux",
            hint="set train.router_aux=null",
        )
    if given and not has_loss:
        raise ConfigError(
            f"{given} for {type(inner).__name__}, for which transformers has no such loss",
            where="train.router_aux",
            hint="its experts were balanced by a bias, which stays as it is: train.router_aux=null",
        )
    return given
