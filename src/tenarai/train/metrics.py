"""What a run measured, kept as it goes: metrics.jsonl, and TensorBoard's event files.

One JSON object a line. `step` counts the steps that were taken, from 0 for the first weights:

    {"step": 250, "loss": 3.1, "lr": 0.00098, "grad_norm": 0.42, "tokens": 512000,
     "tokens_per_s": 17800, "mfu": 0.61, "seconds": 28.7, "val_loss": 3.2}

loss is the mean over the step's tokens, grad_norm the gradient's before clipping, seconds the
time spent in steps since the run began; val_loss stands where the step was validated.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenarai.io.atomic import WriteError, atomic_write

Record = dict[str, Any]


class Metrics:
    """The metrics of one run's folder, appended to. Records after step `after` are dropped:
    they are of a run that was cut off, and come again.

    Raises WriteError.
    """

    def __init__(self, file: Path, events: Path | None, after: int):
        self.file = file
        self.records = [r for r in read_metrics(file) if r["step"] <= after]
        with atomic_write(file, "w") as f:
            f.writelines(_line(record) for record in self.records)
        self._events = _event_writer(events, after) if events is not None else None

    def append(self, record: Record) -> None:
        """Write one record, so that it survives the process."""
        try:
            with self.file.open("a", encoding="utf-8") as f:
                f.write(_line(record))
        except OSError as error:
            raise WriteError(self.file, error) from error
        self.records.append(record)
        if self._events is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._events.add_scalar(f"train/{name}", value, record["step"])

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # its own files; ours are written
                self._events.close()
            self._events = None


def read_metrics(file: Path) -> list[Record]:
    """The records of a metrics.jsonl; lines that are damaged or cut off are left out."""
    return list(_read(file))


def _read(file: Path) -> Iterator[Record]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def cut_samples(file: Path, after: int) -> None:
    """Drop the samples of steps beyond `after` from a samples.txt. Raises WriteError."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for heading in re.finditer(r"^--- step (\d+) ---$", text, re.MULTILINE):
        if int(heading[1]) > after:
            with atomic_write(file, "w") as f:
                f.write(text[: heading.start()])
            return


def rounded(x: float, digits: int = 6) -> float:
    """`x` to so many significant digits, for lines that people read too."""
    return float(f"{x:.{digits}g}") if math.isfinite(x) else x


def _event_writer(folder: Path, after: int) -> Any:
    from tensorboardX import SummaryWriter  # half a second: not for those who do without

    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)
