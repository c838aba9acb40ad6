"""What a study with views keeps of a frozen prefix: its cuts, rounded to bfloat16, whether they are stored or not.

The bits of an image's features must depend neither on where in a batch it stands nor on what stands beside it. Stages
1 to 5 keep to that at any one size of the batch, so that they always run on as many images as the recipe says; stage
6 does where each thread's share of the rows is not too small, so that it runs on a multiple of 64
(docs/decisions/views.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fasttransfer.networks.caffenet import CaffeNet

_ROWS = 64
DEEPEST = 6
"""The last cut that is a function of the view alone: stage 7 begins with a dropout."""


def kept_cut(n: int) -> int:
    """What a cell that is frozen up to cut `n` reads: cut n, but for n = 7 cut 6, behind which stage 7 runs live."""
    return min(n, DEEPEST)


def cut_name(source: str, cut: int) -> str:
    """How a batch calls a cut of a source: "A5"."""
    return f"{source}{cut}"


@torch.no_grad()
def rounded_cuts(net: CaffeNet, images: Tensor, cuts: Iterable[int], batch: int) -> dict[int, Tensor]:
    """cut -> (N, ...) bfloat16, of one forward pass that rounds nothing on its way.

    Args:
        net: the source.
        images: (N, ...), as stage 1 reads them, at most `batch`; fewer are filled up with zeros.
        cuts: which, 1 to 6.
        batch: images of every pass.
    """
    n, x, start = len(images), _filled(images, batch), 0
    found = {}
    for cut in sorted(set(cuts)):
        if cut == DEEPEST:
            x = _filled(net(x, start=start, stop=cut - 1), -(-batch // _ROWS) * _ROWS)
            start = cut - 1
        x = net(x, start=start, stop=cut)
        found[cut], start = x[:n].to(torch.bfloat16), cut
    return found


def _filled(x: Tensor, rows: int) -> Tensor:
    """`x` with zeros behind its last row, where it has less than `rows`."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))]).contiguous(memory_format=torch.channels_last)
