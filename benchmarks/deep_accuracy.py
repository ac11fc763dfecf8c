"""How near a large GGUF file's logits are to what its weights say, where float32 weights do not fit
into memory: tenarai with each kind of activations, and llama.cpp.

    python benchmarks/deep_accuracy.py phi3-q4km.gguf

The truth is the NumPy ops in float32, which expand one matrix at a time. Told of each: |l - t| /
|t| over all logits of the first tokens of a text, and the mean KL divergence (nats a token).
Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from accuracy import TEXT, of_llama_cpp

import tenarai
import tenarai.ops.reference
from tenarai.infer.perplexity import kl_divergence, log_softmax
from tenarai.io.named_models import model_path
from tenarai.quant import ACTIVATIONS


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL", help="a GGUF file or a name that is known")
    p.add_argument("--text", type=Path, default=TEXT, help="a text file (WikiText-2)")
    p.add_argument("--tokens", type=int, default=16, help="of it (%(default)s); bytes are for > 8")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", action="store_true")
    return p.parse_args()


def main() -> None:
    a = arguments()
    path, context = model_path(a.model), a.tokens + 8
    model = tenarai.load(path, ops=tenarai.ops.reference, context=context)
    assert model.tokenizer is not None
    text = a.text.read_text("utf-8")[: 40 * a.tokens]
    ids = model.tokenizer.with_bos(model.tokenizer.encode(text))[: a.tokens]
    truth = np.float64(model.logits(np.array(ids)))
    found = {}
    for name in (*ACTIVATIONS, "llama.cpp"):
        if name == "llama.cpp":
            logits = of_llama_cpp(path, a, context).logits(ids)
        else:
            how = {"activations": name, "threads": a.threads, "context": context}
            logits = tenarai.load(path, **how).logits(np.array(ids))
        error = np.linalg.norm(logits - truth) / np.linalg.norm(truth)
        kl = kl_divergence(log_softmax(truth), log_softmax(logits)).mean()
        found[name] = {"logits": float(error), "kl": float(kl)}
        if not a.json:
            print(f"{name:10}{100 * error:9.4f} %{kl:12.2e}", flush=True)
    result = {"benchmark": "deep_accuracy", "model": path.name, "tokens": len(ids), "sides": found}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
