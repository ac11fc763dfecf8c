"""A fuzzer of everything that reads a stranger's GGUF file.

    python tests/fuzz_gguf.py --cases 200000 --seed 1 [--json]

Each case is a damaged file (gguf_mutations.py). It is read, all of its metadata and tensors are
looked at, then a tokenizer, a chat template and a model's configuration are made of it and used.
What may come of it: an answer, or a TenaraiError of one line. Everything else is a failure: another
exception, a case that takes a second, memory beyond the bounds below. A case is repeated with
`--only NUMBER` and the same seed. The process ends with 1 where there were failures.
"""

import argparse
import collections
import faulthandler
import json
import sys
import time
import traceback
import tracemalloc
import warnings

import numpy as np

from gguf_mutations import CHATML, RICH, case
from tenarai.errors import TenaraiError
from tenarai.io import gguf
from tenarai.models.gguf_exchange import read_gguf
from tenarai.quant import FORMATS
from tenarai.tokenizers.chat import chat_template, encode_chat
from tenarai.tokenizers.gguf import from_gguf

SECONDS = 1.0  # of processor time a case
# Reading keeps some 0.3 KB a key or tensor, which is more than their 20 to 60 bytes in a file;
# for large files only what is proportional counts.
READING = 256 << 10
# A vocabulary and its tables, a template compiled, what it writes (1 M characters of 4 bytes).
USING = 48 << 20
TEMPLATE = "tokenizer.chat_template"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello <|im_end|> 犬 ab\n"},
]


def look(data):
    """All that is done with a file; → how far it came. Raises TenaraiError and nothing else."""
    file = gguf.parse(data, "case.gguf")
    for name in file.metadata:
        file.metadata[name]
    for t in file.tensors.values():
        if t.format.name in FORMATS:
            with np.errstate(all="ignore"):
                assert t.float32().size == t.size
        assert t.raw().nbytes == t.nbytes <= len(data)
    return file


def use(file, chat=True):
    """A model, a tokenizer and a template from a file that could be read; → how far each came.

    `chat` False leaves out the templates of the seeds themselves: most of the time would go there.
    """
    came = [_tried("model", lambda: read_gguf(file))]
    tokenizer = None

    def make():
        nonlocal tokenizer
        tokenizer = from_gguf(file.metadata)
        ids = tokenizer.encode("hello ab<|im_end|> 犬\t\0")
        assert isinstance(tokenizer.decode(ids), str)

    came.append(_tried("tokenizer", make))
    if tokenizer is not None and (chat or not _is_ours(file.metadata.get(TEMPLATE))):
        template = lambda: chat_template(file.metadata, tokenizer)  # noqa: E731
        came.append(_tried("chat", lambda: encode_chat(tokenizer, template(), MESSAGES)))
    return came


def _is_ours(template):
    return isinstance(template, str) and template in (CHATML, RICH)


def _tried(what, call):
    try:
        call()
    except TenaraiError as error:
        check_message(error)
        return f"{what} refused"
    return f"{what} made"


def check_message(error):
    text = str(error)
    assert text and "\n" not in text and len(text) < 1000, f"no line: {text!r:.200}"


class Run:
    """Cases one after the other, and what came of them."""

    def __init__(self, seed):
        self.seed, self.cases, self.failures = seed, 0, []
        self.outcomes, self.ways = collections.Counter(), collections.Counter()
        self.slowest, self.reading, self.using = (0.0, -1), (0, -1), (0, -1)
        self.size = 0

    def one(self, number):
        data, seed, way = case(number, self.seed)
        self.cases, self.size = self.cases + 1, max(self.size, len(data))
        self.ways[f"{seed}, {way}"] += 1
        tracemalloc.start()  # what was there before does not count
        start = time.thread_time()
        try:
            came = self._came(data, number)
        except Exception:
            came = ["failed"]
            self.fail(number, traceback.format_exc())
        seconds = time.thread_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.using, self.slowest = (
            max(self.using, (peak, number)),
            max(self.slowest, (seconds, number)),
        )
        if seconds > SECONDS:
            self.fail(number, f"took {seconds:.2f} s")
        if peak > USING:
            self.fail(number, f"took {peak:,} bytes, its file has {len(data):,}")
        self.outcomes.update(came)

    def _came(self, data, number):
        """Read, then used; the memory of reading is counted apart."""
        file = None
        try:
            file = look(data)
        except TenaraiError as error:
            check_message(error)
        _, peak = tracemalloc.get_traced_memory()
        self.reading = max(self.reading, (peak, number))
        if peak > READING + 2 * len(data):
            self.fail(number, f"reading took {peak:,} bytes, the file has {len(data):,}")
        return ["file refused"] if file is None else ["file read", *use(file, number % 8 == 0)]

    def fail(self, number, what):
        self.failures.append((number, what))

    def report(self):
        return {
            "cases": self.cases,
            "seed": self.seed,
            "failures": [{"case": n, "what": w} for n, w in self.failures],
            "outcomes": dict(sorted(self.outcomes.items())),
            "ways": dict(sorted(self.ways.items())),
            "slowest_s": round(self.slowest[0], 4),
            "slowest_case": self.slowest[1],
            "peak_reading_bytes": self.reading[0],
            "peak_reading_case": self.reading[1],
            "peak_using_bytes": self.using[0],
            "peak_using_case": self.using[1],
            "largest_file_bytes": self.size,
        }


def fuzz(numbers, seed):
    """Run some cases; → the Run. A case that hangs ends the process with a trace."""
    run = Run(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, number in enumerate(numbers):
                if i % 50 == 0:
                    faulthandler.dump_traceback_later(120, exit=True)
                run.one(number)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return run


def main():
    parser = argparse.ArgumentParser(description="Damaged GGUF files, by the thousand.")
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, its answer in full")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    numbers = range(options.start, options.start + options.cases)
    run = fuzz(numbers if options.only is None else [options.only], options.seed)
    report = run.report()
    if options.json:
        print(json.dumps(report))
    else:
        for name, found in report.items():
            print(f"{name}: {found}")
    for number, what in run.failures[:20]:
        print(f"case {number}: {what}", file=sys.stderr)
    return 1 if run.failures else 0


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
