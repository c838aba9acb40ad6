"""The cuts of a frozen prefix in a study with views, rounded to bfloat16 whether they are cached or computed live.

The bits of an image's features must depend neither on its place in the batch nor on the other images. Stages 1 to 5
satisfy that for a fixed size of the batch, so they always run on as many images as the recipe says; stage 6 does if
each thread's share of the rows is not too small, so it runs on a multiple of 64 (docs/decisions/views.md).
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
    """Return the cut that a cell frozen up to cut `n` reads: n, but 6 for n = 7, because stage 7 runs live."""
    return min(n, DEEPEST)


def cut_name(source: str, cut: int) -> str:
    """Return the name of a cut of a source in a batch, e.g. "A5"."""
    return f"{source}{cut}"


@torch.no_grad()
def rounded_cuts(net: CaffeNet, images: Tensor, cuts: Iterable[int], batch: int) -> dict[int, Tensor]:
    """Return cut -> (N, ...) bfloat16, from one forward pass that does not round in between.

    Args:
        net: the source network.
        images: (N, ...), in the form that stage 1 reads, at most `batch`; fewer are padded with zeros.
        cuts: numbers from 1 to 6.
        batch: images per pass.
    """
    n, x, start = len(images), _pad_rows(images, batch), 0
    features = {}
    for cut in sorted(set(cuts)):
        if cut == DEEPEST:
            x = _pad_rows(net(x, start=start, stop=cut - 1), -(-batch // _ROWS) * _ROWS)
            start = cut - 1
        x = net(x, start=start, stop=cut)
        features[cut], start = x[:n].to(torch.bfloat16), cut
    return features


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """Return `x` with rows of zeros appended up to `rows`."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))]).contiguous(memory_format=torch.channels_last)
