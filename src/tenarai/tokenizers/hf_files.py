"""The tokenizer's files of a Hugging Face folder, for every tokenizer that the format can say.

tokenizer.json is the `tokenizers` library's; of one that came from GGUF metadata, a SentencePiece
.model or llama2.c's file it is made here:

    byte-level BPE   the vocabulary, its merges, the patterns that cut words
    SentencePiece    merges in the order of the scores, ▁ for spaces, bytes for what is no piece

The second has one merge for each way in which a piece falls into two others, the piece with the
best score first. Among pieces of one score SentencePiece takes the leftmost pair and the library
the merge that stands first, so texts may differ there; pieces of one score are rare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers as library
from tokenizers import decoders, models, normalizers, processors

from .base import Tokenizer
from .bpe import HFTokenizer, guard
from .byte_level import ByteLevelTokenizer
from .merge_by_score import ScoreTokenizer
from .pieces import PieceTokenizer
from .vocabulary import SPACE, TokenType

Files = dict[str, bytes]
ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def folder_files(
    tokenizer: Tokenizer, context: int, template: str | None = None
) -> tuple[Files, dict[str, Any], list[str]]:
    """Its files by name, the ids that config.json wants, and what the format cannot hold.

    `context` is the model's longest text, `template` the chat template.
    """
    ends = sorted(tokenizer.end_tokens - {tokenizer.eot}) if tokenizer.eot is not None else []
    first = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    ids = {
        "bos_token_id": first,
        "eos_token_id": [tokenizer.eot, *ends] if ends else tokenizer.eot,
    }
    document = document_of(tokenizer)
    if document is None:
        name = f"the {tokenizer.name} tokenizer for transformers: only tenarai reads its file"
        return _encoded({"tokenizer.json": tokenizer.to_json()}), ids, [name]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    for key, i in (("bos_token", first), ("eos_token", tokenizer.eot)):
        if i is not None:
            settings[key] = name_of(tokenizer, i)
    if isinstance(tokenizer, PieceTokenizer) and tokenizer.vocabulary.unknown is not None:
        settings["unk_token"] = name_of(tokenizer, tokenizer.vocabulary.unknown)
    if template:
        settings["chat_template"] = template
    return _encoded({"tokenizer.json": document, "tokenizer_config.json": settings}), ids, []


def document_of(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """tokenizer.json, parsed; None for a kind that the library does not have."""
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.document
    if isinstance(tokenizer, ByteLevelTokenizer):
        return _byte_level(tokenizer)
    return _by_score(tokenizer) if isinstance(tokenizer, ScoreTokenizer) else None


def name_of(tokenizer: Tokenizer, i: int) -> str:
    """A special token as it is written."""
    return tokenizer.token_bytes(i).decode(errors="replace")


def _encoded(files: Mapping[str, Any]) -> Files:
    return {
        name: json.dumps(value, ensure_ascii=False, indent=1).encode()
        for name, value in files.items()
    }


def _byte_level(tokenizer: ByteLevelTokenizer) -> dict[str, Any]:
    merges = [tuple(merge.split(" ")) for merge in tokenizer.merges]
    made = library.Tokenizer(
        guard(
            models.BPE, vocab=dict(tokenizer.vocabulary.ids), merges=merges,
            ignore_merges=tokenizer.kind.whole_words,
        )
    )  # fmt: skip
    if tokenizer.normalizer:
        made.normalizer = tokenizer.normalizer
    made.pre_tokenizer = tokenizer.cutter
    made.decoder = decoders.ByteLevel()
    return _framed(made, tokenizer)


def _by_score(tokenizer: ScoreTokenizer) -> dict[str, Any]:
    v = tokenizer.vocabulary
    unknown = None if v.unknown is None else v.tokens[v.unknown]
    made = library.Tokenizer(
        guard(
            models.BPE, vocab=dict(v.ids), merges=_merges(tokenizer), unk_token=unknown,
            fuse_unk=True, byte_fallback=bool(v.byte_ids()),
        )
    )  # fmt: skip
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if tokenizer.prefix_space:
        steps.insert(0, normalizers.Prepend(SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence(back)
    return _framed(made, tokenizer)


def _merges(tokenizer: ScoreTokenizer) -> list[tuple[str, str]]:
    """Every way in which a piece is two others, the best piece first, then the shorter left."""
    ranks = tokenizer.ranks
    found = []
    for piece in sorted(ranks, key=ranks.__getitem__):
        parts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [pair for pair in parts if pair[0] in ranks and pair[1] in ranks]
    return found


def _framed(made: library.Tokenizer, tokenizer: PieceTokenizer) -> dict[str, Any]:
    """With its special tokens, and the token before every text where the model wants one."""
    v = tokenizer.vocabulary
    made.add_tokens(
        [
            library.AddedToken(
                name,
                special=v.types[i] != TokenType.USER_DEFINED,
                normalized=False,
                rstrip=name in tokenizer.swallow,
            )
            for name, i in sorted(v.of_type(*ADDED).items(), key=lambda item: item[1])
        ]
    )
    if tokenizer.add_bos and tokenizer.bos is not None:
        bos = name_of(tokenizer, tokenizer.bos)
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos)]
        )
    return dict(json.loads(made.to_str()))
