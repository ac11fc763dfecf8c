"""What a person sees while a model trains: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import IO, Any

from tqdm import tqdm

from .metrics import Record


class Report:
    """Writes to `stream` (stdout where none is given). `quiet`: nothing at all."""

    def __init__(self, stream: IO[str] | None = None, quiet: bool = False):
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self.live = not quiet and self.stream.isatty()
        self._bar: Any = None

    def start(self, step: int, steps: int) -> None:
        """The loop begins at `step` of `steps`."""
        if self.live:
            self._bar = tqdm(
                initial=step,
                total=steps,
                file=self.stream,
                dynamic_ncols=True,
                bar_format="{desc} |{bar}|",
                leave=False,
                mininterval=0.05,
            )

    def say(self, text: str = "") -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self.stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def step(self, record: Record, steps: int, left: float) -> None:
        """A step was taken: renew the live line."""
        if self._bar is not None:
            self._bar.set_description_str(line(record, steps, left), refresh=False)
            self._bar.update(record["step"] - self._bar.n)

    def logged(self, record: Record, steps: int, left: float) -> None:
        """A step of the log: a line of its own where there is no live one, or it was validated."""
        if not self.live or "val_loss" in record:
            self.say(line(record, steps, left))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def line(record: Record, steps: int, left: float) -> str:
    """One step in one line. `left`: seconds to the end."""
    parts = [f"step {record['step']:>{len(str(steps))}}/{steps}"]
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    if "val_loss" in record:
        parts.append(f"val {record['val_loss']:.4f}")
    if "lr" in record:
        parts += [f"lr {record['lr']:.2e}", f"norm {record['grad_norm']:.2f}"]
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
        if record.get("mfu") is not None:
            parts.append(f"MFU {100 * record['mfu']:.0f}%")
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """ "1:05", "2:10:00", "3 days 4:00:00"."""
    whole = max(0, round(seconds))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    clock = f"{h}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
    return f"{days} day{'s' if days > 1 else ''} {clock}" if days else clock
