"""The Python API: `tenarai.load(path)` and the model that it gives.

    model = tenarai.load("gpt2")                       # a Hugging Face folder
    loss, grads = model.loss_and_grads(tokens, targets)
    print(model.generate("Once upon a time", max_tokens=40, seed=1))
    model.save("gpt2_124M.bin")                        # as llm.c reads it

How files become weights stands in models/exchange.py, how text is made in infer/.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenarai import tokenizers
from tenarai.errors import TenaraiError
from tenarai.infer.generate import generate_ids, start_of_text
from tenarai.infer.sampler import Sampler, Sampling
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
HALVES = {"bfloat16": ".bin", "float16": ".gguf"}  # which file holds numbers of two bytes
FILES = {".bin": "llm.c's .bin", ".gguf": "a GGUF file"}
IGNORED = (-100, -1)  # targets that do not count: PyTorch's and ours


def load(
    path: PathName,
    *,
    context: int | None = None,
    activations: str = "bytes",
    threads: int | None = None,
    ops: Any = None,
    lora: PathName | None = None,
) -> Model:
    """Open a model: a GGUF file, a Hugging Face folder, llm.c's .bin, a tenarai checkpoint or run
    folder.

    `context` is the longest text that will be asked for, the model's own by default; a model that
    was stretched to long texts (Phi-3 of 128k) is truer to short ones when it is opened for them.
    `activations` are those of products with quantised weights: "bytes" is the fastest (8 bits for
    prompts, as other engines have it, 12 and more for tokens being written), "words" (12 and more)
    a hundred times nearer to exact, "float32" exact but for rounding.
    `threads` are those of the kernels (one a core by default); `ops` takes other operations,
    such as `tenarai.ops.reference`, which needs no compiled core. A tokenizer is opened where one
    lies in or beside the weights. `lora` puts an adapter on it: a PEFT folder, a GGUF adapter, or
    the folder of a run of `tenarai finetune`. Raises TenaraiError that says what the path is and
    what to do.
    """
    if activations not in ACTIVATIONS:
        raise TenaraiError(f"activations are {activations!r}, expected one of {ACTIVATIONS}")
    path = Path(path)
    kind, metadata = formats.detect(path), None
    model: AnyModel
    params: Any
    tokenizer: Any
    if kind == formats.GGUF:
        file = gguf.read(path)
        metadata = file.metadata
        model, params = gguf_exchange.read_gguf(file)
        tokenizer = partial(_gguf_tokenizer, metadata)
    else:
        model, params, tokenizer = _open(path, kind)
    if context is not None:
        model = _for_context(path, model, context)
    if lora is not None:
        from tenarai.models.adapter import read_adapter

        params = read_adapter(lora, model).on(params)
    how: dict[str, Any] = {"activations": activations, "threads": threads, "ops": ops}
    return Model(model, params, tokenizer, metadata=metadata, **how)


def _open(path: Path, kind: str) -> tuple[AnyModel, Weights, Tokenizer | None]:
    """Model, weights and tokenizer of anything but a GGUF file."""
    from tenarai.models import exchange, llmc_exchange, snapshot

    if kind == formats.HUGGING_FACE:
        model, params = exchange.read_hugging_face(path)
    elif kind == formats.LLMC:
        model, params = llmc_exchange.read_llmc(path)
    elif kind == formats.SAFETENSORS:
        raise TenaraiError(f"{path}: weights alone do not say their model: name the folder of them")
    else:
        model, params, document = snapshot.read(path)
        return model, params, None if document is None else tokenizers.from_document(document)
    return model, params, _tokenizer(path, kind)


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


def _tokenizer(path: Path, kind: str) -> Tokenizer | None:
    """The tokenizer that lies with the weights. A damaged one is an error, a missing one is not."""
    found = tokenizers.find(path if path.is_dir() else path.parent)
    if found is None or (kind == formats.LLMC and found.suffix != ".bin"):
        return None
    return tokenizers.load(found)


class Model:
    """A language model with its weights. Not for two Python threads at once.

    config: its numbers. tokenizer: may be None. params: name → float32 array, as trained here, or
    weights as they lie in a GGUF file, with an adapter or not. metadata: that file's, empty for a
    model from elsewhere.
    """

    def __init__(
        self,
        model: AnyModel,
        params: Any,
        tokenizer: Tokenizer | Callable[[], Tokenizer | None] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        activations: str = "bytes",
        threads: int | None = None,
        ops: Any = None,
    ):
        self.model, self.params, self._tokenizer = model, params, tokenizer
        self.metadata = {} if metadata is None else metadata
        self._activations, self._threads, self._given_ops = activations, threads, ops

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Made when first needed: a large vocabulary takes longer than a map of the weights."""
        return self._tokenizer() if callable(self._tokenizer) else self._tokenizer

    @property
    def config(self) -> AnyConfig:
        return self.model.config

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
            model, self.params, tokenizer, metadata=self.metadata,
            activations=self._activations, threads=self._threads, ops=self._given_ops,
        )  # fmt: skip

    def merged(self, requantise: bool = False) -> Model:
        """The model with its adapter inside its weights: float32, each made when it is asked for,
        or with `requantise` in the format of the weight that it is on."""
        if not isinstance(self.params, Adapted):
            return self
        how = self.ops.quantize if requantise else None
        tokenizer = self.__dict__.get("tokenizer", self._tokenizer)
        return Model(self.model, Merged(self.params, how), tokenizer, metadata=self.metadata)

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
        timings: Timings | None = None,
    ) -> str | list[int] | Iterator[str] | Iterator[int]:
        """What follows `prompt` (text, or token ids), without it, up to a token that ends a text.

        A string; with `return_tokens` a list of ids; with `stream` an iterator over pieces of
        text (or ids). `temperature` 0 always takes the most probable token; `top_k` 0 and `top_p`
        1 cut nothing off; `sampling` says all of this and more. The same seed gives the same
        tokens. The prompt is read `batch` tokens at a time, its first `keep` stay when the context
        is full. What it costs is added to `timings`.
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
        vocabulary = self._vocabulary if sampling.constrained and self.tokenizer else None
        sampler = Sampler(sampling, seed=seed, tokenizer=self.tokenizer, vocabulary=vocabulary)
        tokens = generate_ids(
            self.ops, self.model, self.params, ids, max_tokens, sampler, stop, timings,
            batch=batch, keep=keep,
        )  # fmt: skip
        if return_tokens:
            return tokens if stream else list(tokens)
        pieces = self._decoded(tokens)
        return pieces if stream else "".join(pieces)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """For grammars; it takes a second where the vocabulary is large."""
        from tenarai.infer.samplers.grammar import Vocabulary

        assert self.tokenizer is not None
        return Vocabulary(self.tokenizer)

    def save(self, path: PathName, dtype: str = "float32") -> list[str]:
        """Write the model, in a format by suffix, and return what that format could not hold.

        `.gguf` is a GGUF file (`dtype` "float32" or "float16" for matrices that are not quantised;
        those that are stay as they are), `.bin` llm.c's file ("float32" or "bfloat16"), `.tenarai`
        a checkpoint of tenarai; anything else is a Hugging Face folder, tokenizer included.
        Raises TenaraiError for a suffix of a format that cannot be written; WriteError.
        """
        from tenarai.models import exchange, llmc_exchange, snapshot

        if isinstance(self.params, Adapted):
            return self.merged().save(path, dtype)
        path = Path(path)
        if dtype != "float32" and HALVES.get(dtype) != path.suffix:
            where = HALVES.get(dtype)
            raise TenaraiError(
                f"{path}: only {FILES[where]} can be written in {dtype}"
                if where
                else f"{path}: dtype is {dtype!r}, expected float32, {' or '.join(HALVES)}"
            )
        if path.suffix == ".gguf":
            return self._save_gguf(path, dtype)
        if path.suffix == ".bin":
            llmc_exchange.write_llmc(path, self.model, self.params.expanded(), dtype)
            return ["the tokenizer: keep its file beside the model"] if self.tokenizer else []
        if path.suffix == snapshot.SUFFIX:
            document = self.tokenizer.to_json() if self.tokenizer else None
            snapshot.write(path, self.model, self.params.expanded(), document)
            return []
        if path.suffix in (".pt", ".pth", ".ckpt"):
            raise TenaraiError(
                f"{path}: {path.suffix} files cannot be written (yet): name a folder for Hugging "
                f"Face's format, or a file ending in .gguf, .bin (llm.c) or {snapshot.SUFFIX}"
            )
        files, end, left_out = _hugging_face_tokenizer(self.tokenizer, self.config)
        exchange.write_hugging_face(path, self.model, self.params.expanded(), files, end)
        return left_out

    def _save_gguf(self, path: Path, dtype: str) -> list[str]:
        """The tokenizer goes along, and the name and licence of a model from a GGUF file."""
        from tenarai.models import gguf_out
        from tenarai.tokenizers.gguf_out import to_gguf

        own = {
            key: value
            for key, value in self.metadata.items()
            if key.startswith(("tokenizer.", "general.")) and key not in gguf_out.OWN_KEYS
        }
        left_out = []
        if "tokenizer.ggml.model" not in own and self.tokenizer is not None:
            try:
                own |= to_gguf(self.tokenizer)
            except tokenizers.TokenizerError as error:
                left_out = [f"the tokenizer ({error}): keep its file beside the model"]
        types = getattr(self.metadata, "types", {})
        gguf_out.write_gguf(path, self.model, self.params, dtype, own, types)
        return left_out

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
        if context and ids.shape[-1] > self.config.context:
            raise TenaraiError(
                f"{name} are {ids.shape[-1]} in a row, the model's context is "
                f"{self.config.context}: give shorter sequences"
            )
        V = self.config.vocab_size
        wrong = ids[((ids < 0) | (ids >= V)) & ~np.isin(ids, besides)]
        if wrong.size:
            raise TenaraiError(f"{name} hold {wrong[0]}, ids of this model are 0 to {V - 1}")
        return np.ascontiguousarray(ids, np.int32)


def _hugging_face_tokenizer(
    tokenizer: Tokenizer | None, config: AnyConfig
) -> tuple[dict[str, bytes], int | None, list[str]]:
    """Its files for a Hugging Face folder, the id that ends a text, and what is not held."""
    if tokenizer is None:
        return {}, None, []
    document, left_out = tokenizer.to_json(), []
    document = document.get("tokenizer", document)  # ours wraps theirs where eot needs saying
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": False,
    }
    files = {"tokenizer.json": document}
    if "tenarai_tokenizer" in document:
        left_out = [f"the {tokenizer.name} tokenizer for transformers: only tenarai reads its file"]
    else:
        if tokenizer.eot is not None:
            end = tokenizer.decode([tokenizer.eot])
            settings |= {"bos_token": end, "eos_token": end}
        files["tokenizer_config.json"] = settings
    encoded = {
        name: json.dumps(value, ensure_ascii=False, indent=1).encode()
        for name, value in files.items()
    }
    return encoded, tokenizer.eot, left_out
