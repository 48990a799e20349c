"""Gaussian noise on images, and accuracy under it (A fig. 6, N fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nettrim.experiments.context import mean
from nettrim.experiments.training import accuracy


def noisy(images: Tensor, level: float, seed: int) -> Tensor:
    """Images (samples, pixels) with Gaussian noise whose norm is `level` times that of all images together.

    Neither paper defines its percentages; this is the ratio of noise to signal.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images.device)  # the same on every device
    return images + (level * images.norm() / noise.norm()) * noise


def robustness(model: nn.Module, images: Tensor, labels: Tensor, levels: Sequence[float], draws: int) -> list[float]:
    """Accuracy in percent at each level, the mean over draws of the noise; every model sees the same draws."""
    return [
        mean([accuracy(model, noisy(images, level, draw), labels) for draw in range(draws if level else 1)])
        for level in levels
    ]
