"""The operators that a network spends its time on outside of matrix products, native where there is a kernel.

Shapes: N images, C channels, H x W pixels, S the side of a stored image. Activations are NCHW tensors in
channels-last memory. One module per operator: its public function, its reference in plain PyTorch, which runs where
the native libraries have no kernel (see `fasttransfer.ops.native`), its fake for compilers, and its gradient.
"""

from __future__ import annotations

from fasttransfer.ops._augment import augment
from fasttransfer.ops._conv2d_small_maps import conv2d_small_maps
from fasttransfer.ops._conv_relu import conv_relu, conv_relu_backward
from fasttransfer.ops._conv_relu_pool_lrn import conv_relu_pool_lrn, conv_relu_pool_lrn_pays
from fasttransfer.ops._dropout import dropout
from fasttransfer.ops._pack_features import PackedFeatures, pack_features, unpack_features
from fasttransfer.ops._relu_pool import relu_pool
from fasttransfer.ops._relu_pool_lrn import relu_pool_lrn
from fasttransfer.ops._resize import resize
from fasttransfer.ops._sgd_step import sgd_step
from fasttransfer.ops._sparse_conv_backward import conv2d_to_pool, conv2d_to_pool_backward, sparse_conv_backward

__all__ = [
    "PackedFeatures",
    "augment",
    "conv2d_small_maps",
    "conv2d_to_pool",
    "conv2d_to_pool_backward",
    "conv_relu",
    "conv_relu_backward",
    "conv_relu_pool_lrn",
    "conv_relu_pool_lrn_pays",
    "dropout",
    "pack_features",
    "relu_pool",
    "relu_pool_lrn",
    "resize",
    "sgd_step",
    "sparse_conv_backward",
    "unpack_features",
]
