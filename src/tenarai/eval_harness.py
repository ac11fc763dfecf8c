"""lm-evaluation-harness driving a tenarai model: its model "tenarai".

    python -m tenarai.eval_harness --model tenarai --model_args model=smollm2 --tasks hellaswag

or in Python, after `import tenarai.eval_harness`: lm_eval.simple_evaluate(model="tenarai",
model_args={"model": "smollm2", "threads": 2}, tasks=[...]). The package lm-eval is imported here
and nowhere else. Probabilities are those of infer/likelihood.py, which `tenarai eval` uses too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from tenarai.api import load
from tenarai.errors import TenaraiError
from tenarai.infer.likelihood import Request, Scorer, prefix_token, request_of, rolling
from tenarai.infer.sampling import Sampling
from tenarai.io.named_models import model_path

WRITTEN = 256  # tokens of an answer at most, where a task does not say


@register_model("tenarai")
class TenaraiLM(LM):
    """`model` is what `tenarai.load` opens, or a name of `tenarai pull`; the other settings are
    those of `load`. Sizes of batches and devices are accepted and have no meaning here."""

    def __init__(
        self,
        model: str,
        context: int | None = None,
        tokenizer: str | None = None,
        activations: str = "bytes",
        threads: int | None = None,
        lora: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        how: dict[str, Any] = {"activations": activations, "threads": threads, "lora": lora}
        self.model = load(model_path(model), tokenizer=tokenizer, **how)
        if self.model.tokenizer is None:
            raise TenaraiError(f"{model}: no tokenizer lies beside this model: name one")
        self.tokens = self.model.tokenizer
        self.scorer = Scorer(self.model.ops, self.model.model, self.model.params, context)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """(log p, greedy?) of each request's (context, continuation)."""
        asked = [request_of(self.tokens, *r.args) for r in requests]
        groups = _groups([r.args[0] for r in requests], asked)
        scores = [s for group in self._scored(groups, disable_tqdm) for s in group]
        found = [(s.log_likelihood, s.greedy) for s in scores]
        for r, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", r.args, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each request's whole text."""
        groups, owners = [], []
        for i, r in enumerate(requests):
            ids = self.tokens.with_bos(self.tokens.encode(r.args[0]))
            parts = rolling(ids, prefix_token(self.tokens), self.scorer.context)
            new = [[part] for part in parts]
            groups += new
            owners += [i] * len(new)
        sums = [0.0] * len(requests)
        for i, (s,) in zip(owners, self._scored(groups, disable_tqdm), strict=True):
            sums[i] += s.log_likelihood
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each request's context, up to one of its stops."""
        return [self._written(*r.args) for r in tqdm(requests, disable=disable_tqdm)]

    def _written(self, context: str, settings: dict[str, Any]) -> str:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else [s for s in stops if s]
        count = int(settings.get("max_gen_toks") or settings.get("max_tokens") or WRITTEN)
        ids = self.tokens.with_bos(self.tokens.encode(context)) or [prefix_token(self.tokens)]
        ids = ids[-max(1, self.scorer.context - count) :]
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        sampling = Sampling(warm, 0, float(settings.get("top_p") or 1.0))
        stream, text = self.tokens.stream(), ""
        tokens = self.model.generate(ids, count, sampling=sampling, stream=True, return_tokens=True)
        for token in tokens:
            text += stream.push(int(token))
            if any(stop in text for stop in stops):
                break
        text += stream.flush()
        return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=len(text))]

    def _scored(self, groups: Sequence[Sequence[Request]], quiet: bool) -> list[Any]:
        with tqdm(total=len(groups), desc="tenarai", disable=quiet or None) as bar:
            return self.scorer(groups, bar.update)


def _groups(contexts: Sequence[str], requests: Sequence[Request]) -> list[list[Request]]:
    """Neighbours with one context together: they begin alike."""
    groups: list[list[Request]] = []
    for i, request in enumerate(requests):
        if i and contexts[i] == contexts[i - 1]:
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups


def main() -> None:
    """The harness's own command line, with this model among its models."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
