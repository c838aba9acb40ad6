"""The cases of `fasttransfer bench operators`: every operator at the sizes of the paper's network.

Each is timed natively, as PyTorch users write it, that compiled, and against a plain copy of the bytes it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fasttransfer import ops
from fasttransfer.bench.harness import CACHES, Call, emulates
from fasttransfer.core import randomness
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI
from fasttransfer.networks.geometry import layer_of
from fasttransfer.ops._conv_relu import conv_relu_backward_reference
from fasttransfer.ops._sparse_conv_backward import sparse_conv_backward_reference
from fasttransfer.ops.native import CPU_ONLY

BATCH = 64  # images
KEPT_AT = {1: 0.73, 2: 0.41, 5: 0.54}  # cut -> share of its features that are not zero, bench/results/features.json
KEPT = KEPT_AT[5]


@dataclass(frozen=True)
class Case:
    """One operator on one size and dtype.

    Attributes:
        least_bytes: what any implementation has to read and write.
        variants: makes the inputs on a device and returns the calls to compare, "native" first.
        multiplies: whether matrix products or convolutions dominate.
    """

    operator: str
    size: str
    dtype: torch.dtype
    work: str
    least_bytes: int
    variants: Callable[[torch.device], dict[str, Call]]
    multiplies: bool = False

    @property
    def label(self) -> str:
        """The case in one line."""
        return f"{self.operator} {self.size} {str(self.dtype).removeprefix('torch.')} {self.work}"

    def why_not(self, device: torch.device) -> str | None:
        """Return why the case cannot be measured on a device; None if it can."""
        if device.type == "cuda" and self.operator in CPU_ONLY:
            return f"{self.operator} has no CUDA kernel"
        if self.multiplies and emulates(device, self.dtype):
            return "this processor emulates products in bfloat16"
        return None


def cases() -> list[Case]:
    """Return all cases."""
    on_images = [_resize(375, 500), _resize(500, 375)]
    return on_images + [
        case
        for dtype in (torch.bfloat16, torch.float32)
        for case in (
            *_pooling("relu_pool_lrn", ops.relu_pool_lrn, _plain_relu_pool_lrn, (BATCH, 96, 55, 55), dtype),
            *_pooling("relu_pool_lrn", ops.relu_pool_lrn, _plain_relu_pool_lrn, (BATCH, 256, 27, 27), dtype),
            *_pooling("relu_pool", ops.relu_pool, _plain_relu_pool, (BATCH, 256, 13, 13), dtype),
            *(_frozen(stage, dtype) for stage in (1, 2)),
            *(_behind_pooling(stage, dtype) for stage in KEPT_AT),
            *_dropout((4 * BATCH, 9216), dtype),
            *(_packing() if dtype == torch.bfloat16 else ()),
            *(case for stage in (3, 4) if dtype == torch.float32 for case in _on_small_maps(stage)),
            _augment(dtype),
            _sgd(dtype),
        )
    ]


def _rotated(bytes_each: int, make: Callable[[], Sequence[Tensor]]) -> Callable[[int], Sequence[Tensor]]:
    """Return equal sets of inputs by running number: more than the caches hold."""
    sets = [make() for _ in range(max(1, min(8, -(-CACHES // bytes_each))))]
    return lambda i: sets[i % len(sets)]


def _against(native: Callable[..., object], plain: Callable[..., object]) -> dict[str, Callable[..., object]]:
    return {"native": native, "eager": plain, "compiled": torch.compile(plain, dynamic=False)}


def _channels_last(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype, memory_format=torch.channels_last)


def _plain_relu_pool(x: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(x), 3, 2, ceil_mode=True)  # the bias comes with the convolution


def _plain_relu_pool_lrn(x: Tensor, bias: Tensor) -> Tensor:
    pooled = _plain_relu_pool(x, bias).float()  # as autocast does on a CPU, where the other type is not implemented
    return F.local_response_norm(pooled, 5, alpha=1e-4, beta=0.75, k=1.0).to(x.dtype)


def _pooling(
    name: str,
    native: Callable[[Tensor, Tensor], Tensor],
    plain: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> Iterator[Case]:
    n, c, h, w = shape
    before, after = n * c * h * w, n * c * ((h - 2) // 2 + 1) * ((w - 2) // 2 + 1)
    size, item = "x".join(map(str, shape)), dtype.itemsize
    kept = after * item if name == "relu_pool_lrn" else 0
    codes = after // 2

    def forward(device: torch.device) -> dict[str, Call]:
        inputs = _rotated(before * item, lambda: (_channels_last(shape, dtype, device), torch.randn(c, device=device)))
        return {k: lambda i, f=f: f(*inputs(i)) for k, f in _against(native, plain).items()}  # type: ignore[misc]

    def both(device: torch.device) -> dict[str, Call]:
        def make() -> Sequence[Tensor]:
            x = _channels_last(shape, dtype, device).requires_grad_()
            bias = torch.randn(c, device=device).requires_grad_()
            return x, bias, torch.randn_like(plain(x, bias))

        inputs = _rotated(2 * before * item, make)

        def run(f: Callable[..., Any], wanted: int) -> Call:
            def call(i: int) -> object:
                x, bias, gradient = inputs(i)
                return torch.autograd.grad(f(x, bias), (x, bias)[:wanted], gradient)

            return call

        return {k: run(f, 2 if k == "native" else 1) for k, f in _against(native, plain).items()}

    yield Case(name, size, dtype, "forward", (before + after) * item, forward)
    traffic = (before + after) * item + kept + codes + (after + before) * item + kept + codes
    yield Case(name, size, dtype, "forward + backward", traffic, both)


def _stage(stage: int) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """The shapes of what a convolution of the paper's network reads and of its weights, and how it is done."""
    shapes = (BATCH, *CAFFENET.cut_shape(stage - 1)), CAFFENET.weight_shapes(1)[stage - 1]
    if stage == 1:
        return *shapes, {"stride": CAFFENET.stride, "padding": 0, "groups": 1}
    padding, groups = layer_of(stage).padding, layer_of(stage).groups
    return *shapes, {"stride": 1, "padding": padding, "groups": groups}


def _frozen(stage: int, dtype: torch.dtype) -> Case:
    shape, weight_shape, same = _stage(stage)

    def variants(device: torch.device) -> dict[str, Call]:
        weight = (0.01 * _channels_last(weight_shape, torch.float32, device)).to(dtype)
        bias = torch.randn(weight_shape[0], device=device)
        inputs = _rotated(elements * dtype.itemsize, lambda: (_channels_last(shape, dtype, device),))

        def parts(x: Tensor) -> Tensor:
            return ops.relu_pool_lrn(F.conv2d(x, weight, None, **same), bias)

        def plain(x: Tensor) -> Tensor:
            return _plain_relu_pool_lrn(F.conv2d(x, weight, bias.to(dtype), **same), bias)

        def fused(x: Tensor) -> Tensor:
            return ops.conv_relu_pool_lrn(x, weight, bias, **same)

        found = _against(fused, plain) | {"convolution + relu_pool_lrn": parts}
        return {k: torch.no_grad()(lambda i, f=f: f(*inputs(i))) for k, f in found.items()}

    elements = torch.Size(shape).numel()
    result = BATCH * torch.Size(CAFFENET.cut_shape(stage)).numel()
    traffic = (elements + result + torch.Size(weight_shape).numel()) * dtype.itemsize
    return Case("conv_relu_pool_lrn", f"stage {stage}, batch {BATCH}", dtype, "forward", traffic, variants, True)


def _behind_pooling(stage: int, dtype: torch.dtype) -> Case:
    """The gradients of a stage's convolution behind pooling and a ReLU that lets through as much as a trained one."""
    shape, weight_shape, same = _stage(stage)

    def variants(device: torch.device) -> dict[str, Call]:
        weight = _channels_last(weight_shape, dtype, device)
        wanted = stage > 1  # training needs no gradient of the images

        def make() -> Sequence[Tensor]:
            x = _channels_last(shape, dtype, device)
            y = F.conv2d(x, weight, None, **same).float().requires_grad_()
            pooled = F.max_pool2d(y, 3, 2, ceil_mode=True)
            passed = torch.randn_like(pooled).masked_fill_(torch.rand_like(pooled) >= KEPT_AT[stage], 0.0)
            (gradient,) = torch.autograd.grad(pooled, y, passed)
            return gradient.to(dtype, memory_format=torch.channels_last), x

        inputs = _rotated((elements + result) * dtype.itemsize, make)

        def native(gradient: Tensor, x: Tensor) -> object:
            return ops.sparse_conv_backward(gradient, x, weight, input=wanted, **same)

        def plain(gradient: Tensor, x: Tensor) -> object:
            return sparse_conv_backward_reference(gradient, x, weight, input=wanted, **same)

        return {k: lambda i, f=f: f(*inputs(i)) for k, f in {"native": native, "eager": plain}.items()}  # type: ignore[misc]

    elements = torch.Size(shape).numel()
    result = BATCH * CAFFENET.channels[stage - 1] * CAFFENET.sides[stage - 1] ** 2
    products = 2 if stage > 1 else 1
    traffic = (result + products * (elements + torch.Size(weight_shape).numel())) * dtype.itemsize
    size = f"stage {stage}, batch {BATCH}, {KEPT_AT[stage]:.0%} not 0"
    return Case("sparse_conv_backward", size, dtype, "backward", traffic, variants, True)


def _on_small_maps(stage: int) -> Iterator[Case]:
    """A convolution of the small network, whose maps have 4 x 4 pixels, with the batch of its recipe."""
    batch, layer = 16, layer_of(stage)
    shape, weight_shape = (batch, *CAFFENET_MINI.cut_shape(stage - 1)), CAFFENET_MINI.weight_shapes(1)[stage - 1]
    outputs = (batch, *CAFFENET_MINI.cut_shape(stage))

    def make(device: torch.device) -> tuple[Callable[[int], Sequence[Tensor]], Tensor, Tensor]:
        weight = 0.05 * _channels_last(weight_shape, torch.float32, device)
        bias = torch.randn(weight_shape[0], device=device)

        def inputs() -> Sequence[Tensor]:
            return tuple(_channels_last(each, torch.float32, device) for each in (outputs, outputs, shape))

        return _rotated(4 * (2 * after + before), inputs), weight, bias

    def forward(device: torch.device) -> dict[str, Call]:
        inputs, weight, bias = make(device)
        both = _against(
            lambda x: ops.conv_relu(x, weight, bias, padding=layer.padding, groups=layer.groups),
            lambda x: F.relu(F.conv2d(x, weight, bias, padding=layer.padding, groups=layer.groups)),
        )
        return {k: torch.no_grad()(lambda i, f=f: f(inputs(i)[2])) for k, f in both.items()}

    def backward(device: torch.device) -> dict[str, Call]:
        inputs, weight, _ = make(device)
        sizes = layer.padding, layer.groups
        both = {"native": torch.ops.fasttransfer.conv_relu_backward, "eager": conv_relu_backward_reference}
        return {k: lambda i, f=f: f(*inputs(i), weight, *sizes, True) for k, f in both.items()}  # type: ignore[misc]

    before, after, weights = (torch.Size(each).numel() for each in (shape, outputs, weight_shape))
    size = f"stage {stage} of {CAFFENET_MINI.name}, batch {batch}"
    yield Case("conv_relu", size, torch.float32, "forward", 4 * (before + weights + after), forward, True)
    traffic = 4 * (2 * after + 2 * before + 2 * weights)
    yield Case("conv_relu_backward", size, torch.float32, "backward", traffic, backward, True)


def _dropout(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[Case]:
    key = randomness.key(0, "bench-dropout")
    elements = torch.Size(shape).numel()

    def variants(device: torch.device, backward: bool) -> dict[str, Call]:
        step = torch.tensor(1, device=device)

        def make() -> Sequence[Tensor]:
            x = torch.randn(shape, device=device).to(dtype).requires_grad_(backward)
            return x, torch.randn_like(x)

        inputs = _rotated(elements * dtype.itemsize, make)

        def run(f: Callable[[Tensor], Tensor]) -> Call:
            def call(i: int) -> object:
                x, gradient = inputs(i)
                return torch.autograd.grad(f(x), x, gradient) if backward else f(x)

            return call

        # PyTorch's own draws from a generator and stores its mask.
        found = _against(lambda x: ops.dropout(x, key, step, 0.5), lambda x: F.dropout(x, 0.5))
        return {k: run(f) for k, f in found.items()}  # type: ignore[arg-type]

    size = "x".join(map(str, shape))
    once = 2 * elements * dtype.itemsize
    yield Case("dropout", size, dtype, "forward", once, lambda device: variants(device, False))
    yield Case("dropout", size, dtype, "forward + backward", 2 * once, lambda device: variants(device, True))


def _kept_and_values(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.permute(0, 2, 3, 1)
    kept = x != 0
    return kept, x[kept]


def _packing() -> Iterator[Case]:
    """Features at the paper's cut 5. PyTorch has no bits: a plain mask takes a byte an element."""
    shape = (16 * BATCH, *CAFFENET.cut_shape(5))  # even packed, several sets of them are more than the caches hold
    elements = torch.Size(shape).numel()
    size = f"{'x'.join(map(str, shape))}, {KEPT:.0%} not 0"
    least = int(elements * (2 + 1 / 8 + 2 * KEPT))

    def make(device: torch.device) -> Tensor:
        x = _channels_last(shape, torch.bfloat16, device)
        return x.masked_fill_(torch.rand_like(x, dtype=torch.float32) >= KEPT, 0.0)

    def pack(device: torch.device) -> dict[str, Call]:
        inputs = _rotated(2 * elements, lambda: (make(device),))
        found = {"native": ops.pack_features, "eager": _kept_and_values}
        return {k: lambda i, f=f: f(*inputs(i)) for k, f in found.items()}  # type: ignore[misc]

    def unpack(device: torch.device) -> dict[str, Call]:
        def plain(kept: Tensor, values: Tensor) -> Tensor:
            return torch.zeros(kept.shape, dtype=values.dtype, device=device).masked_scatter_(kept, values)

        packed = _rotated(elements, lambda: ops.pack_features(make(device)))
        masks = _rotated(2 * elements, lambda: _kept_and_values(make(device)))
        return {
            "native": lambda i: ops.unpack_features(ops.PackedFeatures(*packed(i)), shape[1:]),
            "eager": lambda i: plain(*masks(i)),
        }

    yield Case("pack_features", size, torch.bfloat16, "forward", least, pack)
    yield Case("unpack_features", size, torch.bfloat16, "forward", least, unpack)


def _augment(dtype: torch.dtype) -> Case:
    store, crop = CAFFENET.store, CAFFENET.crop

    def variants(device: torch.device) -> dict[str, Call]:
        images = torch.randint(0, 256, (8 * BATCH, store, store, 3), dtype=torch.uint8, device=device)
        mean = torch.rand(store, store, 3, device=device) * 255

        def make() -> Sequence[Tensor]:
            rows = torch.randperm(8 * BATCH, device=device)[:BATCH]
            top, left = (torch.randint(0, store - crop + 1, (BATCH,), device=device) for _ in range(2))
            return rows, mean, top, left, torch.rand(BATCH, device=device) < 0.5

        inputs = _rotated(BATCH * store * store * 3, make)

        def native(*given: Tensor) -> Tensor:
            return ops.augment([images], *given, crop=crop, scale=1.0, dtype=dtype)

        def plain(rows: Tensor, mean: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
            views = []
            for row, y, x, flip in zip(rows.tolist(), top.tolist(), left.tolist(), mirror.tolist(), strict=True):
                view = images[row, y : y + crop, x : x + crop].float() - mean[y : y + crop, x : x + crop]
                views.append(view.flip(1) if flip else view)
            return torch.stack(views).to(dtype).permute(0, 3, 1, 2)

        return {k: lambda i, f=f: f(*inputs(i)) for k, f in {"native": native, "eager": plain}.items()}  # type: ignore[misc]

    traffic = BATCH * 3 * crop * crop * (1 + dtype.itemsize)
    return Case("augment", f"{BATCH} images, {store} to {crop}", dtype, "forward", traffic, variants)


def _resize(height: int, width: int) -> Case:
    """Decoded images, one after another in one thread."""
    store = CAFFENET.store

    def variants(device: torch.device) -> dict[str, Call]:
        def make() -> Sequence[Tensor]:
            return list(torch.randint(0, 256, (BATCH, height, width, 3), dtype=torch.uint8, device=device))

        inputs = _rotated(BATCH * height * width * 3, make)

        def plain(image: Tensor) -> Tensor:
            part = image.permute(2, 0, 1)[None]
            return F.interpolate(part, size=(store, store), mode="bilinear", antialias=True)

        def pillow(image: Tensor) -> Image.Image:
            return Image.fromarray(image.numpy()).resize((store, store), Image.Resampling.BILINEAR)

        each: dict[str, Callable[[Tensor], object]]
        each = {"native": lambda image: ops.resize(image, store), "eager": plain, "Pillow": pillow}
        return {k: lambda i, f=f: [f(image) for image in inputs(i)] for k, f in each.items()}  # type: ignore[misc]

    traffic = BATCH * 3 * (height * width + store * store)
    size = f"{BATCH} images, {height}x{width} to {store}"
    return Case("resize", size, torch.uint8, "forward", traffic, variants)


def _sgd(dtype: torch.dtype) -> Case:
    """An update of the whole network; `dtype` is that of the gradients and of the copies for the next forward pass."""
    shapes = [shape for weight in CAFFENET.weight_shapes(500) for shape in (weight, weight[:1])]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    rounded = dtype != torch.float32

    def variants(device: torch.device) -> dict[str, Call]:
        weights = [torch.randn(shape, device=device) for shape in shapes]
        velocities = [torch.zeros_like(w) for w in weights]
        gradients = [torch.randn_like(w).to(dtype) for w in weights]
        copies = [w.to(dtype) for w in weights] if rounded else []
        lr, scales, decay = torch.tensor(1e-4, device=device), [1.0] * len(shapes), [5e-4] * len(shapes)
        wide = [torch.randn_like(w) for w in weights]
        for w, g in zip(weights, wide, strict=True):
            w.grad = g
        plain = torch.optim.SGD(weights, 1e-4, momentum=0.9, weight_decay=5e-4, foreach=True)
        fused = torch.optim.SGD(weights, 1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

        def native(i: int) -> None:
            ops.sgd_step(weights, velocities, gradients, copies, lr=lr, momentum=0.9, lr_scale=scales, decay=decay)

        def with_casts(optimiser: torch.optim.SGD) -> Call:
            def call(i: int) -> None:
                if rounded:  # what autocast does with gradients and weights in every step
                    torch._foreach_copy_(wide, gradients)
                optimiser.step()
                if rounded:
                    torch._foreach_copy_(copies, weights)

            return call

        return {"native": native, "eager": with_casts(plain), "PyTorch's fused": with_casts(fused)}

    traffic = count * (4 * 4 + dtype.itemsize + (dtype.itemsize if rounded else 0))
    return Case("sgd_step", f"{count / 1e6:.0f} million weights", dtype, "update", traffic, variants)
