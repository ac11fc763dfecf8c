"""The loss of a run as a picture: loss.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenarai.io.atomic import atomic_write

from .metrics import Record


def plot_loss(records: list[Record], file: Path, title: str) -> None:
    """Draw training and validation loss over the steps. Raises WriteError."""
    # Without pyplot, which would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, records)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(file) as f:
        figure.savefig(f, format="png")


def _draw(axes: Any, records: list[Record]) -> None:
    train = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    val = [(r["step"], r["val_loss"]) for r in records if r.get("val_loss") is not None]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9db8d2", linewidth=0.8, label="training, single steps")
        axes.plot(steps, _smooth(losses), color="#1f5a94", linewidth=1.8, label="training, mean")
    if val:
        steps, losses = zip(*val, strict=True)
        axes.plot(steps, losses, "o-", color="#c8501e", linewidth=1.5, markersize=4,
                  label=f"validation, best {min(losses):.3f}")  # fmt: skip
    if train or val:
        axes.legend(frameon=False)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Running mean over about a thirtieth of the run on either side; shorter at both ends."""
    n, half = len(values), max(1, len(values) // 60)
    parts = (values[max(0, i - half) : i + half + 1] for i in range(n))
    return [sum(part) / len(part) for part in parts]
