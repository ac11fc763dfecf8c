"""Text to token ids and back. Knows no model and no data.

tokenizer = tenarai.tokenizers.load("run")    # a file or a folder with one
ids = tokenizer.encode("吾輩は猫である")
for i in ids: print(stream.push(i), end="")   # stream = tokenizer.stream()

Conversations stand in tokenizers/chat.py. A kind of tokenizer is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import StreamDecoder, Tokenizer, TokenizerError

if TYPE_CHECKING:
    from .bpe import HFTokenizer, byte_level_bpe, train_bpe
    from .files import find, from_document, load
    from .gguf import from_gguf
    from .simple import ByteTokenizer, CharTokenizer, IdTokenizer

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "HFTokenizer",
    "IdTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "byte_level_bpe",
    "find",
    "from_document",
    "from_gguf",
    "load",
    "train_bpe",
]

_HOME = {
    "bpe": ("HFTokenizer", "byte_level_bpe", "train_bpe"),
    "files": ("find", "from_document", "load"),
    "gguf": ("from_gguf",),
    "simple": ("ByteTokenizer", "CharTokenizer", "IdTokenizer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
