"""The Python API: `tenarai.load(path)` and the model that it gives.

    model = tenarai.load("gpt2")                       # a Hugging Face folder
    loss, grads = model.loss_and_grads(tokens, targets)
    print(model.generate("Once upon a time", max_tokens=40, seed=1))
    model.save("gpt2_124M.bin")                        # as llm.c reads it

How files become weights stands in models/exchange.py, how text is made in infer/.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.infer.engine import Engine
from tenarai.infer.generate import generate_ids, start_of_text
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.sequence import Guesses
from tenarai.infer.timings import Timings
from tenarai.io import formats, gguf
from tenarai.models import families, gguf_exchange
from tenarai.models.families import AnyConfig, AnyModel
from tenarai.models.llama import Llama
from tenarai.models.lora import Adapted, Merged
from tenarai.models.table import FileWeights, Weights
from tenarai.ops.lora import Tuning
from tenarai.quant import ACTIVATIONS
from tenarai.tokenizers import Tokenizer

if TYPE_CHECKING:
    from tenarai.infer.samplers.grammar import Vocabulary

Array = np.ndarray
PathName = str | os.PathLike[str]
IGNORED = (-100, -1)  # targets that do not count: PyTorch's and ours


def load(
    path: PathName,
    *,
    context: int | None = None,
    tokenizer: PathName | None = None,
    activations: str = "bytes",
    threads: int | None = None,
    ops: Any = None,
    lora: PathName | None = None,
) -> Model:
    """Open a model: a GGUF file, a Hugging Face folder, llm.c's or llama2.c's .bin, a tenarai
    checkpoint or run folder.

    `context` is the longest text that will be asked for, the model's own by default; a model that
    was stretched to long texts (Phi-3 of 128k) is truer to short ones when it is opened for them.
    `activations` are those of products with quantised weights: "bytes" have 8 bits in prompts and
    12 and more where tokens are written; "words" 12 and more everywhere, nearer to exact and in
    prompts slower; "float32" are exact but for rounding.
    `threads` are those of the kernels (one a core by default); `ops` takes other operations,
    such as `tenarai.ops.reference`, which needs no compiled core. A tokenizer is opened where one
    lies in or beside the weights; `tokenizer` names another. `lora` puts an adapter on it: a PEFT
    folder, a GGUF adapter, or the folder of a run of `tenarai finetune`. Raises TenaraiError that
    says what the path is and what to do.
    """
    if activations not in ACTIVATIONS:
        raise TenaraiError(f"activations are {activations!r}, expected one of {ACTIVATIONS}")
    path = Path(path)
    kind = formats.detect(path)
    metadata: Mapping[str, Any]
    model: AnyModel
    params: Any
    found: Any
    if kind == formats.GGUF:
        file = gguf.read(path)
        metadata = file.metadata
        model, params = gguf_exchange.read_gguf(file)
        found = partial(_gguf_tokenizer, metadata)
    else:
        from tenarai.opening import open_model

        model, params, found, metadata = open_model(path, kind, look=tokenizer is None)
    if tokenizer is not None:
        from tenarai.opening import other_tokenizer, without_tokenizer

        found, metadata = other_tokenizer(tokenizer, model), without_tokenizer(metadata)
    if context is not None:
        model = _for_context(path, model, context)
    if lora is not None:
        from tenarai.models.adapter import read_adapter

        params = read_adapter(lora, model).on(params)
    folder = path if kind == formats.HUGGING_FACE and tokenizer is None else None
    return Model(
        model, params, found, metadata=metadata, folder=folder,
        activations=activations, threads=threads, ops=ops, context=context,
    )  # fmt: skip


def _gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a GGUF file describes, if it does."""
    if "tokenizer.ggml.model" not in metadata:
        return None
    from tenarai.tokenizers.gguf import from_gguf

    return from_gguf(metadata)


def _for_context(path: Path, model: AnyModel, context: int) -> AnyModel:
    """The model for texts up to `context`; GPT-2's learned positions stay as many as they are."""
    if not 1 <= context <= model.config.context:
        raise TenaraiError(
            f"{path}: context is {context}, this model's is 1 to {model.config.context}"
        )
    return Llama(replace(model.config, context=context)) if isinstance(model, Llama) else model


class Model:
    """A language model with its weights. Not for two Python threads at once.

    config: its numbers. tokenizer: may be None. params: name → float32 array, as trained here, or
    weights as they lie in a file, with an adapter or not. metadata: a GGUF file's; of a folder its
    chat template.
    """

    def __init__(
        self,
        model: AnyModel,
        params: Any,
        tokenizer: Tokenizer | Callable[[], Tokenizer | None] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        activations: str = "bytes",
        threads: int | None = None,
        ops: Any = None,
        context: int | None = None,
    ):
        self._context = context  # shorter than the model's own, as asked for
        self.model, self.params, self._tokenizer = model, params, tokenizer
        self.metadata = {} if metadata is None else metadata
        self._folder = folder  # Hugging Face's, whose tokenizer files go into the next one
        self._activations, self._threads, self._given_ops = activations, threads, ops

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Made when first needed: a large vocabulary takes longer than a map of the weights."""
        return self._tokenizer() if callable(self._tokenizer) else self._tokenizer

    @property
    def config(self) -> AnyConfig:
        return self.model.config

    @property
    def context(self) -> int:
        """The longest text: the model's own, or what it was opened for."""
        return min(self._context or self.config.context, self.config.context)

    @cached_property
    def ops(self) -> Any:
        """The operations, made when first needed: opening and converting need no kernels."""
        ops = self._given_ops
        if ops is None:
            from tenarai.ops.fast import Fast

            ops = Fast(threads=self._threads, activations=self._activations)
        return Tuning(ops) if isinstance(self.params, Adapted) else ops

    def for_context(self, context: int) -> Model:
        """The same weights for texts up to `context`. Raises TenaraiError: longer than its own."""
        model = _for_context(Path(), self.model, context)
        tokenizer = self.__dict__.get("tokenizer", self._tokenizer)
        return Model(
            model, self.params, tokenizer, metadata=self.metadata, folder=self._folder,
            activations=self._activations, threads=self._threads, ops=self._given_ops,
            context=context,
        )  # fmt: skip

    def merged(self, requantise: bool = False) -> Model:
        """The model with its adapter inside its weights: float32, each made when it is asked for,
        or with `requantise` in the format of the weight that it is on."""
        if not isinstance(self.params, Adapted):
            return self
        how = self.ops.quantize if requantise else None
        tokenizer = self.__dict__.get("tokenizer", self._tokenizer)
        return Model(
            self.model, Merged(self.params, how), tokenizer, metadata=self.metadata,
            folder=self._folder, context=self._context,
        )  # fmt: skip

    def __repr__(self) -> str:
        c = self.config
        return (
            f"<{families.name_of(self.model)} of {self.params.count:,} weights: {c.layers} layers, "
            f"{c.heads} heads, width {c.width}, context {c.context}, vocabulary {c.vocab_size}>"
        )

    def logits(self, tokens: Any) -> Array:
        """Logits (B, T, V) float32 after each of tokens (B, T), or (T, V) of tokens (T,).

        Raises TenaraiError: not whole numbers, outside the vocabulary, longer than the context.
        """
        ids = self._ids(tokens, "tokens")
        logits = self.model.logits(self.ops, self.params, np.atleast_2d(ids))
        return np.asarray(logits if ids.ndim == 2 else logits[0])

    def loss_and_grads(self, tokens: Any, targets: Any) -> tuple[float, dict[str, Array]]:
        """Mean cross-entropy of targets (B, T) after tokens (B, T), and its gradients.

        Targets of -100 and -1 do not count. Gradients have Hugging Face's names, layout and
        shapes, float32, as `named_parameters()` gives them: GPT-2's linear layers (I, O), the tied
        embedding once, under `transformer.wte.weight`. No dropout is applied.
        Raises TenaraiError as `logits` does, where the two shapes differ, and for quantised
        weights.
        """
        if isinstance(self.params, Adapted):
            raise TenaraiError(
                "an adapter is on this model, whose weights are frozen: merge it (tenarai merge), "
                "or train it (tenarai finetune)"
            )
        if isinstance(self.params, FileWeights) and self.params.quantised:
            raise TenaraiError(
                f"{self.params.quantised} is quantised, and such weights have no gradients: load "
                "the model from a Hugging Face folder (tenarai convert writes one)"
            )
        from tenarai.models.exchange import in_hugging_face_layout

        ids = np.atleast_2d(self._ids(tokens, "tokens"))
        wanted = np.atleast_2d(self._ids(targets, "targets", IGNORED))
        if ids.shape != wanted.shape:
            raise TenaraiError(
                f"tokens have shape {ids.shape}, targets {wanted.shape}: give one target a token"
            )
        wanted = np.where(wanted < 0, np.int32(-1), wanted)
        grads = Weights(self.params.table)
        loss, saved = self.model.forward(self.ops, self.params, ids, wanted, grads)
        self.model.backward(self.ops, self.params, saved, grads)
        return float(loss), in_hugging_face_layout(grads, self.model)

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int = 100,
        temperature: float = 1.0,
        seed: int = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        sampling: Sampling | None = None,
        stream: bool = False,
        return_tokens: bool = False,
        batch: int = 512,
        keep: int = 0,
        shift: bool = True,
        guesser: Guesses | None = None,
        engine: Engine | None = None,
        timings: Timings | None = None,
    ) -> str | list[int] | Iterator[str] | Iterator[int]:
        """What follows `prompt` (text, or token ids), without it, up to a token that ends a text.

        A string; with `return_tokens` a list of ids; with `stream` an iterator over pieces of
        text (or ids). `temperature` 0 always takes the most probable token; `top_k` 0 and `top_p`
        1 cut nothing off; `sampling` says all of this and more. The same seed gives the same
        tokens. The prompt is read `batch` tokens at a time, its first `keep` stay when the context
        is full; without `shift` the text ends there. `guesser` (infer/speculative.py) makes it
        faster where a text repeats itself, and changes nothing else. With an `engine` of this
        model that wrote before, only what is new in the prompt is read. What it costs is added to
        `timings`.
        Raises TenaraiError: settings out of bounds, text without a tokenizer, ids that are none.
        """
        sampling = sampling or Sampling(temperature, top_k, top_p)
        for name, value in (("max_tokens", max_tokens), ("seed", seed)):
            if value < 0:
                raise TenaraiError(f"{name} is {value}, it must be at least 0")
        ids = self._prompt(prompt)
        if self.tokenizer is None and not return_tokens:
            raise TenaraiError(
                "this model came without a tokenizer, so it can give no text: "
                "ask for return_tokens=True, or put a tokenizer.json beside it"
            )
        stop = self.tokenizer.end_tokens if self.tokenizer else ()
        sampler = self.sampler(sampling, seed)
        engine = engine or self.engine(rows=batch)
        tokens = generate_ids(
            self.ops, self.model, self.params, ids, max_tokens, sampler, stop, timings,
            batch=batch, keep=keep, shift=shift, guesser=guesser, engine=engine,
        )  # fmt: skip
        if return_tokens:
            return tokens if stream else list(tokens)
        pieces = self._decoded(tokens)
        return pieces if stream else "".join(pieces)

    def sampler(self, sampling: Sampling, seed: int = 0) -> Sampler:
        """Chooses a text's tokens as `sampling` says; the same seed draws the same."""
        vocabulary = self._vocabulary if sampling.constrained and self.tokenizer else None
        return Sampler(sampling, seed=seed, tokenizer=self.tokenizer, vocabulary=vocabulary)

    def engine(self, *, slots: int = 1, rows: int = 512, cache: str = "float16") -> Engine:
        """Writes `slots` texts at once (infer/engine.py), which share what they begin with; read
        `rows` tokens at a time, kept in a cache of type `cache`: float16, int8 or float32."""
        return Engine(
            self.ops, self.model, self.params,
            slots=slots, rows=rows, dtype=cache, context=self.context,
        )  # fmt: skip

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """For grammars; it takes a second where the vocabulary is large."""
        from tenarai.infer.samplers.grammar import Vocabulary

        assert self.tokenizer is not None
        return Vocabulary(self.tokenizer)

    def save(
        self,
        path: PathName,
        dtype: str | None = None,
        *,
        target: str | None = None,
        shard_size: int | None = None,
        keep_quantised: bool = False,
        progress: Callable[[int], object] = lambda weights: None,
    ) -> list[str]:
        """Write the model, in a format by suffix, and return what that format could not hold.

        `.gguf` is a GGUF file, `.bin` llm.c's file (of a GPT-2) or llama2.c's, `.tenarai` a
        checkpoint of tenarai; anything else is a Hugging Face folder, tokenizer included, in files
        of at most `shard_size` bytes. `target` names a format of io/targets.TARGETS, `dtype` the
        type of its matrices: "F32" (or "float32"), in places "F16", "BF16" or a quantised one;
        without it, or with `keep_quantised`, GGUF keeps quantised weights as they are. `progress`
        is told the weights done.
        Raises TenaraiError for what cannot be written, or not as that; WriteError.
        """
        from tenarai import export
        from tenarai.io.hugging_face import tokenizer_files

        if isinstance(self.params, Adapted):
            return self.merged().save(
                path, dtype, target=target, shard_size=shard_size, keep_quantised=keep_quantised,
                progress=progress,
            )  # fmt: skip
        files = tokenizer_files(self._folder) if self._folder else {}
        whole = export.Whole(self.model, self.params, self.tokenizer, self.metadata, files)
        return export.write(Path(path), whole, target, dtype, shard_size, keep_quantised, progress)

    def _prompt(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return [int(i) for i in self._ids(list(prompt), "prompt", context=False)]
        if self.tokenizer is None:
            raise TenaraiError(
                "this model came without a tokenizer, so it cannot read text: "
                "give the prompt as token ids, or put a tokenizer.json beside it"
            )
        return self.tokenizer.encode(prompt) or start_of_text(self.tokenizer)

    def _decoded(self, tokens: Iterator[int]) -> Iterator[str]:
        assert self.tokenizer is not None
        decoder = self.tokenizer.stream()
        yield from filter(None, map(decoder.push, tokens))
        if rest := decoder.flush():
            yield rest

    def _ids(
        self, given: Any, name: str, besides: tuple[int, ...] = (), context: bool = True
    ) -> Array:
        """`given` as int32 (T,) or (B, T), every id in the vocabulary or in `besides`."""
        try:
            ids = np.asarray(given)
        except ValueError as error:  # rows of different lengths
            raise TenaraiError(f"{name} are no array: give rows of one length") from error
        if ids.dtype.kind not in "iu":
            raise TenaraiError(f"{name} have type {ids.dtype}, expected whole numbers (token ids)")
        if ids.ndim not in (1, 2) or not ids.size:
            raise TenaraiError(f"{name} have shape {ids.shape}, expected (B, T) or (T,), not empty")
        if context and ids.shape[-1] > self.context:
            raise TenaraiError(
                f"{name} are {ids.shape[-1]} in a row, the model's context is "
                f"{self.context}: give shorter sequences"
            )
        V = self.config.vocab_size
        wrong = ids[((ids < 0) | (ids >= V)) & ~np.isin(ids, besides)]
        if wrong.size:
            raise TenaraiError(f"{name} hold {wrong[0]}, ids of this model are 0 to {V - 1}")
        return np.ascontiguousarray(ids, np.int32)
