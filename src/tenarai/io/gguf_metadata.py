"""GGUF's metadata: keys with typed values, walked and checked once, arrays decoded when asked for.

    key    string                       u64 n · n bytes of UTF-8
    type   u32                          gguf_types.SCALARS, 8 string, 9 array
    value  a scalar, a string, or for an array: u32 element type · u64 n · n elements

Which keys there are is the business of whoever reads a model or a tokenizer.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tenarai.io.gguf_types import (
    ARRAY,
    MAX_KEY,
    MAX_KEYS,
    MAX_STRINGS,
    SCALARS,
    STRING,
    VALUE_NAMES,
    GGUFError,
    shown,
)

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
CUT_OFF = "it is truncated or damaged, download it again"
MIN_KEY = 8 + 1 + 4 + 1  # bytes of the smallest key with its value
_REQUIRED = object()


class Cursor:
    """A place in the bytes of a file. Whatever is read is first checked to lie in the file."""

    def __init__(self, data: Any, path: str, at: int = 0):
        self.data, self.path, self.at = data, path, at
        self.size = len(data)

    def fail(self, what: str, advice: str = "it is damaged, download it again") -> GGUFError:
        return GGUFError(f"{self.path}: {what}: {advice}")

    def need(self, n: int, what: str) -> int:
        """Go on by n bytes; → where they begin."""
        at = self.at
        if n > self.size - at:
            raise self.fail(
                f"{what} needs {n:,} bytes at {at:,}, the file has {self.size:,}",
                CUT_OFF,
            )
        self.at = at + n
        return at

    def room(self, count: int, bytes: int, limit: int, what: str) -> None:
        """Raise where `count` things of at least `bytes` each cannot follow, or never would."""
        if count > (self.size - self.at) // bytes:
            raise self.fail(
                f"it counts {count:,} {what}, {self.size - self.at:,} bytes are left for them",
                CUT_OFF,
            )
        if count > limit:
            raise self.fail(f"it counts {count:,} {what}, at most {limit:,} are read")

    def u32(self, what: str) -> int:
        return U32.unpack_from(self.data, self.need(4, what))[0]

    def u64(self, what: str) -> int:
        return U64.unpack_from(self.data, self.need(8, what))[0]

    def string(self, what: str, limit: int | None = None) -> str:
        n = self.u64(f"the length of {what}")
        if limit is not None and n > limit:
            raise self.fail(f"{what} is {n:,} bytes long, at most {limit:,} are allowed")
        at = self.need(n, what)
        return self.text(at, at + n, what)

    def text(self, begin: int, end: int, what: str) -> str:
        try:
            return self.data[begin:end].decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 (byte {error.start})") from None


class Metadata(Mapping[str, Any]):
    """Key → bool, int, float, str, a read-only NumPy array, or a list of strings.

    `types` has each key's type: "uint32", "float32", "bool", "string", "[int32]", "[string]".
    An array is decoded when it is first asked for.
    """

    def __init__(self, path: str, values: dict[str, Any], types: dict[str, str]):
        self.path, self._values, self.types = path, values, types

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Lazy):
            value = self._values[key] = value.decode()
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def typed(self, key: str, *types: str, default: Any = _REQUIRED) -> Any:
        """The value of `key`, whose type must be one of `types` (gguf_types.INTEGERS, ...).

        Raises GGUFError for another type, and for a missing key where there is no default.
        """
        if key not in self._values:
            if default is _REQUIRED:
                raise GGUFError(f"{self.path}: has no {key}: is the file complete?")
            return default
        if self.types[key] not in types:
            raise GGUFError(
                f"{self.path}: {key} has type {self.types[key]}, expected {' or '.join(types)}: "
                "the file is damaged or was written by a faulty program"
            )
        return self[key]

    def length(self, key: str) -> int:
        """How many elements the array `key` has, without decoding it."""
        value = self._values[key]
        return value.count if isinstance(value, _Lazy) else len(value)

    def first(self, key: str, count: int) -> Any:
        """The first `count` elements of the array `key`; nothing more of it is decoded."""
        value = self._values[key]
        return (value.decode(count) if isinstance(value, _Lazy) else value)[:count]


class _Lazy(ABC):
    """An array in the file, its bounds checked, not yet decoded."""

    def __init__(self, cursor: Cursor, key: str, count: int):
        self.cursor, self.key, self.count = cursor, key, count

    @abstractmethod
    def decode(self, count: int | None = None) -> Any:
        """All elements, or the first `count` where there are as many."""


class _Numbers(_Lazy):
    def __init__(self, cursor: Cursor, key: str, count: int, dtype: np.dtype[Any]):
        super().__init__(cursor, key, count)
        self.dtype = dtype
        self.at = cursor.need(count * dtype.itemsize, f"{shown(key)}, {count:,} of {dtype.name},")
        if dtype == np.bool_:
            bits = np.frombuffer(cursor.data, np.uint8, count, self.at)
            if count and bits.max() > 1:
                raise cursor.fail(f"{shown(key)} has a truth value of {bits.max()}, not 0 or 1")

    def decode(self, count: int | None = None) -> np.ndarray:
        # Copied, since a place in the middle of the metadata has no alignment.
        n = self.count if count is None else min(count, self.count)
        values = np.frombuffer(self.cursor.data, self.dtype, n, self.at)
        values = values.astype(self.dtype.newbyteorder("="))
        values.flags.writeable = False
        return values


class _Strings(_Lazy):
    def __init__(self, cursor: Cursor, key: str, count: int):
        super().__init__(cursor, key, count)
        # The walk is the only way to the next key, and is where a wrong length is found.
        cursor.room(count, 8, MAX_STRINGS, f"strings of {shown(key)}")
        self.begins = array("Q", [0]) * (count + 1)  # 8 bytes a string, as the file has itself
        self.short = self._walk_short()
        if not self.short:
            self._walk()
        cursor.at = self.begins[count]

    def _walk_short(self) -> bool:
        """Fills `begins`; False where a string has 256 bytes or more, or goes beyond the end.

        A vocabulary has 1e5 strings, and one byte of a length is read five times as fast as all.
        """
        begins, at = self.begins, self.cursor.at
        with memoryview(self.cursor.data) as data:
            try:
                for i in range(self.count):
                    begins[i] = at
                    at += 8 + data[at]
            except IndexError:
                return False
        begins[self.count] = at
        if at > self.cursor.size:
            return False
        bytes, starts = np.frombuffer(self.cursor.data, np.uint8), np.frombuffer(begins, np.uint64)
        return not any(bytes[k:][starts[:-1]].any() for k in range(1, 8))

    def _walk(self) -> None:
        data, size, read = self.cursor.data, self.cursor.size, U64.unpack_from
        begins, at = self.begins, self.cursor.at
        for i in range(self.count):
            begins[i] = at
            if at + 8 > size or (at := at + 8 + read(data, at)[0]) > size:
                raise self.cursor.fail(
                    f"{shown(self.key)}: string {i:,} of {self.count:,} goes beyond the file's end",
                    CUT_OFF,
                )
        begins[self.count] = at

    def decode(self, count: int | None = None) -> list[str]:
        data, begins = self.cursor.data, self.begins
        n = self.count if count is None else min(count, self.count)
        if (found := self._decode_together(n)) is not None:
            return found
        try:
            return [data[begins[i] + 8 : begins[i + 1]].decode() for i in range(n)]
        except UnicodeDecodeError:  # once more, to find which
            for i in range(n):
                self.cursor.text(begins[i] + 8, begins[i + 1], f"{shown(self.key)}, string {i:,},")
            raise

    def _decode_together(self, n: int) -> list[str] | None:
        """All at once: short strings with 8 NULs in the place of each length. None where a string
        is long, has a NUL of its own, or is no UTF-8."""
        if not self.short:
            return None
        start = self.begins[0]
        bytes = np.frombuffer(self.cursor.data, np.uint8, self.begins[n] - start, start).copy()
        bytes[np.frombuffer(self.begins, np.uint64, n) - np.uint64(start)] = 0
        try:
            text = bytes.tobytes().decode()
        except UnicodeDecodeError:
            return None
        return text.split("\0" * 8)[1:] if text.count("\0") == 8 * n else None


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """`count` keys with their values from the cursor's place on. Raises GGUFError."""
    cursor.room(count, MIN_KEY, MAX_KEYS, "keys")
    values: dict[str, Any] = {}
    types: dict[str, str] = {}
    for i in range(count):
        key = cursor.string(f"key {i + 1} of {count:,}", MAX_KEY)
        if not key:
            raise cursor.fail(f"key {i + 1} of {count:,} is empty")
        if key in values:
            raise cursor.fail(f"the key {shown(key)} stands there twice")
        values[key], types[key] = _read_value(cursor, key)
    return Metadata(cursor.path, values, types)


def _read_value(cursor: Cursor, key: str) -> tuple[Any, str]:
    number = cursor.u32(f"the type of {shown(key)}")
    if number == ARRAY:
        return _read_array(cursor, key)
    if number == STRING:
        return cursor.string(shown(key)), "string"
    dtype = SCALARS.get(number)
    if dtype is None:
        raise cursor.fail(f"{shown(key)} has the unknown value type {number}")
    at = cursor.need(dtype.itemsize, shown(key))
    if dtype == np.bool_:
        byte = cursor.data[at]
        if byte > 1:
            raise cursor.fail(f"{shown(key)} is a truth value of {byte}, not 0 or 1")
        return bool(byte), "bool"
    return np.frombuffer(cursor.data, dtype, 1, at)[0].item(), dtype.name


def _read_array(cursor: Cursor, key: str) -> tuple[_Lazy, str]:
    number = cursor.u32(f"the element type of {shown(key)}")
    count = cursor.u64(f"the length of {shown(key)}")
    if number == ARRAY:
        raise cursor.fail(f"{shown(key)} is an array of arrays", "no known model has one")
    if number == STRING:
        return _Strings(cursor, key, count), "[string]"
    if number not in SCALARS:
        raise cursor.fail(f"{shown(key)} has the unknown element type {number}")
    return _Numbers(cursor, key, count, SCALARS[number]), f"[{VALUE_NAMES[number]}]"
