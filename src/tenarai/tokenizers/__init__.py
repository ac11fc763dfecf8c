"""Text to token ids and back. Knows no model and no data.

tokenizer = tenarai.tokenizers.load("run")    # a file or a folder with one
ids = tokenizer.encode("吾輩は猫である")
for i in ids: print(stream.push(i), end="")   # stream = tokenizer.stream()

Conversations stand in tokenizers/chat.py.
"""

from .base import StreamDecoder, Tokenizer, TokenizerError
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
