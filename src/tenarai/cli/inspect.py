"""`tenarai inspect`: what is in a model file."""

from __future__ import annotations

import json
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  tenarai inspect phi3.gguf
      a GGUF file (a path, or a name of `tenarai pull`): metadata, types, bits a weight, tensors
  tenarai inspect runs/novel
      the newest checkpoint of a run, its checksum verified
  tenarai inspect gpt2/ --json
      a Hugging Face folder's configuration, tokenizer and tensors, for a program
"""
LONG = 80  # characters of a text on one line


@click.command(epilog=EXAMPLES)
@click.argument("path", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(path: str, as_json: bool) -> None:
    """Show what FILE is: its configuration, tokenizer, tensors, their shapes, types and sizes."""
    from tenarai.files import describe
    from tenarai.io.named_models import model_path

    found = describe(model_path(path))
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    version = f", version {found['version']}" if "version" in found else ""
    lines = [f"{found['path']}: {found['kind']}{version}"]
    if len(parts := found.get("parts", [])) > 1:
        lines.append(f"parts: {len(parts)}, {parts[0]} to {parts[-1]}")
    lines.append(f"tokenizer: {shown(found['tokenizer'] or 'none')}")
    for title in ("config", "run"):
        values = {k: v for k, v in found.get(title, {}).items() if not isinstance(v, dict)}
        lines += _table(title, [[shown(key), shown(v)] for key, v in values.items()])
    rows = [[shown(k), v["type"], _metadata(v)] for k, v in found.get("metadata", {}).items()]
    lines += _table("metadata", rows)
    lines += _types(found)
    tensors = found["tensors"]
    lines.append(
        f"{len(tensors)} tensors, {found['numbers']:,} numbers, {found['bytes'] / 1e6:,.1f} MB"
        + (":" if tensors else "")
    )
    width = max((len(shown(t["name"])) for t in tensors), default=0)
    for t in tensors:
        shape = str(tuple(t["shape"]))
        lines.append(f"  {shown(t['name']):{width}}  {t['dtype']:8}  {shape:16}  {t['bytes']:,}")
    return lines


def _table(title: str, rows: list[list[str]]) -> list[str]:
    """A heading and rows whose columns but the last are aligned; nothing for no rows."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows
    )
    return [f"{title}:", *(f"  {line.rstrip()}" for line in aligned)]


def _metadata(entry: dict[str, Any]) -> str:
    """A value on one line, arrays and texts shortened."""
    if "value" in entry:
        return shown(entry["value"], LONG)
    more = ", ..." if entry["length"] > len(entry["first"]) else ""
    first = shown(", ".join(str(v) for v in entry["first"]), LONG)
    return f"{entry['length']:,}: {first}{more}" if entry["length"] else "0"


def _types(found: dict[str, Any]) -> list[str]:
    groups = found.get("types", {})
    rows = []
    for name, g in groups.items():
        count = "1 tensor" if g["tensors"] == 1 else f"{g['tensors']} tensors"
        bits = f"{g['bits_per_weight']:.2f} bits a weight"
        rows.append([name, count, f"{g['bytes'] / 1e6:,.1f} MB", bits])
    if len(rows) > 1:
        size = f"{found['bytes'] / 1e6:,.1f} MB"
        bits = f"{found['bits_per_weight']:.2f} bits a weight"
        rows.append(["all", f"{len(found['tensors'])} tensors", size, bits])
    return _table("types", rows)


def shown(value: Any, limit: int | None = None) -> str:
    """A stranger's text may hold what moves a terminal's cursor: show that escaped."""
    text = str(value)
    if limit is not None and len(text) > limit:
        text = text[:limit] + "..."
    return text if text.isprintable() else repr(text)
