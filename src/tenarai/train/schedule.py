"""The learning rate of each step: a linear warm-up, then cosine, stable-and-decay, or constant.

    warm-up   lr · (step + 1) / warmup                         step < warmup
    cosine    min + (lr − min) · (1 + cos(π · r)) / 2          r from 0 after the warm-up to 1
    wsd       lr, then min + (lr − min) · (1 − r)              r from 0 to 1 in the last decay steps
    constant  lr

Steps count from 0; r would reach 1 at step `steps`, the first that is not taken. Sources: cosine,
Loshchilov and Hutter, "SGDR" (2017); warm-up, stable, decay, Hu and others, "MiniCPM" (2024).
"""

from __future__ import annotations

import math

from tenarai.config import Schedule


def learning_rate(schedule: Schedule, lr: float, step: int) -> float:
    """The learning rate of step 0 ≤ step < schedule.steps, where the highest is `lr`."""
    if step < schedule.warmup:
        return lr * (step + 1) / schedule.warmup
    if schedule.kind == "constant":
        return lr
    start = schedule.warmup if schedule.kind == "cosine" else schedule.steps - schedule.decay
    if step < start or schedule.steps == start:
        return lr
    r = min((step - start) / (schedule.steps - start), 1.0)
    height = (1 + math.cos(math.pi * r)) / 2 if schedule.kind == "cosine" else 1 - r
    return schedule.min_lr + (lr - schedule.min_lr) * height
