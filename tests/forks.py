"""Processes of a test, forked from one that has imported everything: to import PyTorch takes seconds."""

from __future__ import annotations

import multiprocessing

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "torchvision.io", "fasttransfer.training.workers.local"])
