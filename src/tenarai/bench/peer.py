"""Processes that are measured in turn: each waits for a request, does it, answers, waits.

Every side of a comparison lives in a process of its own, so that thread pools and memory do not
mix; between two requests a process only waits on its stdin. Requests and answers are JSON, one a
line. The first request configures (and its answer says that the process is ready), the others
measure; end of input ends the process. Peers: `torch_peer.py`, `ours.py`, `limits.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import psutil

Answer = Callable[[dict[str, Any]], dict[str, Any]]

# glibc gives large blocks back to the kernel at every free and faults them in again at the next
# allocation; with these, eager PyTorch at T = 1024 takes two thirds of its time.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


class PeerError(RuntimeError):
    """A measured process (`peer` is its name) ended or answered with an error."""

    def __init__(self, peer: str, message: str) -> None:
        super().__init__(f"{peer}: {message}")
        self.peer = peer


def peak_memory() -> int:
    """Peak resident bytes of this process (VmHWM); 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def serve(configure: Callable[[dict[str, Any]], Answer], name: str) -> int:
    """Answers requests on stdin until it ends. What others print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer: Answer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if answer is None:
                answer = configure(request)
                reply: dict[str, Any] = {"ready": name}
            else:
                reply = answer(request)
        except Exception as error:  # whatever it is, the other side must learn of it
            reply = {"error": f"{type(error).__name__}: {error}"}
        reply["peak_bytes"] = peak_memory()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return 0


def busy_seconds() -> float:
    """Processor time that all processes of this machine have taken so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


class Peer:
    """One measured process: a module's name or a script's path, threads, configuration."""

    def __init__(
        self, module: str, threads: int, configuration: dict[str, Any], *, malloc: bool = True
    ) -> None:
        self.name = module if module.endswith(".py") else module.rsplit(".", 1)[-1]
        self.peak_bytes = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (until close)
        count = str(threads)
        environment = {
            **os.environ,
            **(MALLOC_ENVIRONMENT if malloc else {}),
            "OMP_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
        }
        self._process = subprocess.Popen(
            [sys.executable, *([module] if module.endswith(".py") else ["-m", module])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        try:
            self.ask(configuration)
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends one request and waits for its answer; PeerError where none comes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(self.name, f"the process ended: {self._last_words()}")
        reply = json.loads(line)
        self.peak_bytes = reply.pop("peak_bytes", 0)
        if "error" in reply:
            raise PeerError(self.name, reply["error"])
        return reply

    @property
    def cpu_seconds(self) -> float:
        """Processor time that this process has taken so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """Ends the process and waits for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return " / ".join(lines[-3:]) or f"exit status {self._process.returncode}"
