"""`tenarai chat`: a conversation with a model that was taught to converse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .model_options import (
    engine_options,
    guessers,
    model_options,
    need_tokenizer,
    open_engine,
    open_model,
)
from .option_groups import GroupedCommand, option
from .prompt import from_argument
from .sampling_options import forbidding, sampling_of, sampling_options, seed_of

if TYPE_CHECKING:
    from tenarai.api import Model
    from tenarai.infer.engine import Engine
    from tenarai.infer.sampling import Sampling
    from tenarai.infer.timings import Timings

    from .chat_session import Talker

EXAMPLES = """
\b
Examples:
  tenarai chat -m phi-3-mini-q4.gguf
      talk; /help lists the commands, /exit or Ctrl-D leaves
  tenarai chat -m smollm2 --system "Answer in one sentence." --temp 0.5 -n 100
      with a system message; shorter, surer answers
  tenarai chat -m smollm2 --seed 1 < questions.txt > answers.txt
      messages from a file or pipe, a line each; the answers alone go to stdout
"""
GROUP = "The conversation"


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@option(GROUP, "--system", metavar="TEXT", help="What the model is told before all else.")
@option(GROUP, "-p", "--prompt", metavar="TEXT", help="The first message.")
@option(GROUP, "-n", "--predict", "longest", metavar="N", type=click.IntRange(-1), default=-1,
        help="Tokens of an answer at most.  [default: -1, until it ends]")  # fmt: skip
@option(GROUP, "--style", metavar="NAME",
        help="How turns are written, in place of the model's own template: plain (for models that "
             "were only taught to continue texts), chatml, llama2, ...")  # fmt: skip
@option(GROUP, "--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
@model_options
@engine_options
@sampling_options
def chat(
    system: str | None,
    prompt: str | None,
    longest: int,
    style: str | None,
    load: str | None,
    **flags: Any,
) -> int:
    """Talk with a model: answers go to stdout as they are written, all else to stderr."""
    from tenarai.infer.conversation import Conversation

    from .chat_input import Input
    from .chat_session import Session

    sampling, seed = sampling_of(flags), seed_of(flags)
    talk = Conversation.load(load) if load is not None else Conversation()
    if system is not None:
        talk.system = from_argument(system, "--system")
    path, ignore_end = flags["path"], flags.pop("ignore_eos")
    model, _ = open_model(flags)
    tokenizer = need_tokenizer(model, path)
    if ignore_end:
        sampling = forbidding(sampling, tokenizer)
    talker = _talker(model, sampling, flags, longest, str(path), style)
    session, messages = Session(talker, talk, seed), Input()
    click.echo(f"{path}, context {talker.context}, seed {seed}; {sampling}", err=True)
    if messages.terminal:
        click.echo("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves", err=True)
    if prompt is not None and not session.take(from_argument(prompt)):
        return 0
    return session.run(messages)


def _talker(
    model: Model,
    sampling: Sampling,
    flags: dict[str, Any],
    longest: int,
    path: str,
    style: str | None,
) -> Talker:
    from tenarai.tokenizers.chat import chat_template, encode_chat

    from .chat_session import Talker

    tokenizer = model.tokenizer
    assert tokenizer is not None
    template = chat_template(model.metadata, tokenizer, style)
    guesser = guessers(model, flags)
    engines: list[Engine] = []  # the one that holds what was said, so that a turn is read once

    def generate(ids: list[int], limit: int, seed: int, timings: Timings) -> Iterator[int]:
        engine = engines.pop() if engines else open_engine(model, flags)
        found = model.generate(
            ids, limit, seed=seed, sampling=sampling, stream=True, return_tokens=True,
            guesser=guesser(), engine=engine, timings=timings,
        )  # fmt: skip
        yield from map(int, found)
        engines.append(engine)  # one that was interrupted is not used again

    return Talker(
        encode=lambda messages: encode_chat(tokenizer, template, messages),
        generate=generate,
        decoder=lambda: tokenizer.stream(start=True),
        context=model.context,
        longest=longest,
        about={"model": path},
    )
