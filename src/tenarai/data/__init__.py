"""Texts to tokens to batches. Knows no model.

dataset = tenarai.data.load("pydoc")               # prepared once, then from the cache
loader = tenarai.data.Loader(dataset.train, batch=4, context=64)
tokens, targets = loader.next()                    # (B, T) int32 each
"""

from .dataset import Dataset, is_dataset, open_dataset
from .encoding import DataError, Document, read_paths
from .loader import Loader
from .prepare import load, prepare
from .shards import Shard, ShardWriter, open_shard
from .sources import SOURCES, Source, cache_folder

__all__ = [
    "SOURCES",
    "DataError",
    "Dataset",
    "Document",
    "Loader",
    "Shard",
    "ShardWriter",
    "Source",
    "cache_folder",
    "is_dataset",
    "load",
    "open_dataset",
    "open_shard",
    "prepare",
    "read_paths",
]
