"""What linear layers take by torch's own products and by `launcher.model.products`, in fp32 on one
thread of a CPU.

usage: python tests/bench/products.py [--width 256] [--inner 688] [--vocabulary 4096] [--turns 9]

All linear layers of six decoder layers and a head, in the order of a forward, both ways in turn:
`forward` and `gradient` (of the input) for rows as training has them, `laid out` for as few as
answers are made of, a token each. Printed are the least milliseconds of the turns and their ratio.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional

from launcher.model import products


class Layers(nn.Module):
    def __init__(self, width, inner, vocabulary):
        super().__init__()
        shapes = [(width, width), (width, width // 2), (width, width // 2), (width, width)]
        shapes += [(width, inner), (width, inner), (inner, width)]
        shapes = [*shapes * 6, (width, vocabulary)]
        self.own = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)


def least(ways, turns):
    """Milliseconds of each of `ways`."""
    best = [float("inf")] * len(ways)
    for _ in range(turns + 1):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[i] = min(best[i], 1000 * (time.perf_counter() - start))
    return best


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--inner", type=int, default=688)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = Layers(options.width, options.inner, options.vocabulary)
    weights = [own.weight for own in layers.own]
    print(f"{'':<10}{'rows':>6}{'torch':>12}{'here':>12}{'ratio':>8}")

    def row(name, count, *ways):
        own, ours = least(ways, options.turns)
        print(f"{name:<10}{count:>6}{own:>9.2f} ms{ours:>9.2f} ms{own / ours:>7.2f}x", flush=True)

    for count in (512, 2048):
        given = {n: torch.randn(count, n) for n in {d for w in weights for d in w.shape}}
        row(
            *("forward", count),
            lambda given=given: [functional.linear(given[w.shape[1]], w) for w in weights],
            lambda given=given: [products.linear(given[w.shape[1]], w) for w in weights],
        )
        row(
            *("gradient", count),
            lambda given=given: [given[w.shape[0]] @ w for w in weights],
            lambda given=given: [products.product(given[w.shape[0]], w) for w in weights],
        )
    for count in (1, 8, 32):
        given = {w.shape[1]: torch.randn(count, w.shape[1]) for w in weights}
        with products.laid_out(layers, products.MOST_BYTES):
            row(
                *("laid out", count),
                lambda given=given: [functional.linear(given[w.shape[1]], w) for w in weights],
                lambda given=given: [own(given[own.in_features]) for own in layers.own],
            )


if __name__ == "__main__":
    main()
