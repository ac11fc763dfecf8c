"""The command line: `tenarai VERB`. A verb is a file here; each calls one function elsewhere.

Exit status: 0 done, 1 the work failed, 2 wrong usage, 128 + n ended by signal n (130: Ctrl-C).
Verbs are imported when they are used, so that `tenarai --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from tenarai import __version__
from tenarai.errors import TenaraiError, TenaraiWarning

# Verb: its module here, what it does. The command is the module's function of the verb's name.
VERBS = {
    "train": ("train", "Train a language model from nothing."),
    "finetune": ("finetune", "Fine-tune a model: all of its weights, or an adapter on it."),
    "merge": ("merge", "Put an adapter into its model."),
    "run": ("run", "Complete a prompt with a model."),
    "pull": ("pull", "Fetch a model that is known by name."),
    "chat": ("chat", "Talk with a model."),
    "perplexity": ("perplexity", "Measure how well a model foretells a text."),
    "eval": ("eval", "Measure how well a model answers: HellaSwag, LAMBADA, your own questions."),
    "data": ("data", "Fetch a text, or turn texts into tokens."),
    "tokenize": ("tokenize", "Show how a text falls into tokens."),
    "convert": ("convert", "Turn one kind of model file into another."),
    "quantize": ("quantize", "Turn a GGUF file into one of fewer bits a weight."),
    "imatrix": ("imatrix", "Measure which weights matter most, for `quantize`."),
    "inspect": ("inspect", "Show what is in a model file."),
    "bench": ("bench", "Measure speed against the machine's limits and against peers."),
    "doctor": ("doctor", "Show what this machine and this installation can do."),
}


class Verbs(click.Group):
    """A group that imports a verb's module when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            if near := difflib.get_close_matches(name, VERBS, 1):
                ctx.fail(f"No such verb '{name}'. (Did you mean '{near[0]}'?)")
            return None
        module = importlib.import_module(f"{__name__}.{VERBS[name][0]}")
        return getattr(module, name)

    # Where the reader is gone, click would end the program with 1, as if the work had failed.

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except BrokenPipeError:  # in --help and --version
            raise click.exceptions.Exit(_reader_left()) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _reader_left()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`tenarai VERB --help` shows a verb's options and examples.",
)
@click.version_option(__version__, prog_name="tenarai")
def cli() -> None:
    """Train, explain and run language models on CPUs, every gradient by hand."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default); → the exit status."""
    for name in ("stdin", "stdout", "stderr"):
        _make_tolerant(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", TenaraiWarning)
            warnings.showwarning = _show_warning
            status = cli.main(arguments, prog_name="tenarai", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TenaraiError as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:  # a full disk behind `> file`, a file that went away meanwhile
        if not error.filename:
            _discard_output()
        name = os.fsdecode(error.filename) if error.filename else "the output"
        return _fail(f"cannot read or write {name}: {error.strerror or error}")
    except MemoryError as error:
        return _fail(f"this machine has too little memory for it ({error or 'allocation failed'})")
    except Exception as error:
        if os.environ.get("TENARAI_DEBUG"):
            traceback.print_exc()
        where = "TENARAI_DEBUG=1 in the environment shows where"
        return _fail(f"this is a bug in tenarai: {type(error).__name__}: {error} ({where})")


def _reader_left() -> int:
    """The reader has seen enough (`tenarai ... | head`): what is still to come goes nowhere."""
    _discard_output()
    return 141


def _discard_output() -> None:
    """What is still to be written to stdout goes nowhere: ending the program cannot fail."""
    with contextlib.suppress(OSError, ValueError):  # it may be somebody's own object
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: Any = None, line: str | None = None,
) -> None:  # fmt: skip
    name = "warning" if issubclass(category, UserWarning) else category.__name__
    click.echo(f"{name}: {message}", err=True)


def _fail(message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return 1


def _make_tolerant(name: str) -> None:
    """A console that cannot show a character shows `?`: no text ends the program. A stream that
    is closed (`>&-`) is an empty one."""
    if getattr(sys, name) is None:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    reconfigure = getattr(getattr(sys, name), "reconfigure", None)  # not there where replaced
    if reconfigure is not None and name != "stdin":
        reconfigure(errors="replace")
