"""Conversations as the text and the tokens that a model was taught to answer.

    template = chat_template(metadata, tokenizer)       # the file's own, or the family's style
    ids = encode_chat(tokenizer, template, [{"role": "user", "content": "Who are you?"}])

A template writes special tokens by name, and so could whoever writes a message; messages.py has
what is done about that. sandbox.py runs the template.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from .base import Tokenizer, TokenizerError
from .budget import Budget, Limit
from .chat_styles import STYLES, style_of
from .messages import Messages, Quoting, checked, free_mark, plain, size_of
from .sandbox import Refusal, Sandbox
from .vocabulary import text as text_of

MAX_TEMPLATE = 1 << 16  # characters; the longest in use have some 30,000
KEY = "tokenizer.chat_template"


class ChatTemplate:
    """A Jinja template of a conversation. Untrusted: raises TokenizerError, soon.

    variables: what it sees besides the messages, such as bos_token and eos_token. name: the style,
    or "own" for a file's.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None, name: str = "own"):
        self.source, self.name, self._variables = source, name, dict(variables or {})
        if len(source) > MAX_TEMPLATE:
            raise TokenizerError(
                f"the chat template has {len(source):,} characters, at most {MAX_TEMPLATE:,} are "
                "read: is the file damaged?"
            )
        self._sandbox, self._lock = Sandbox(), threading.Lock()
        self._template = _guarded(lambda: self._sandbox.from_string(source))

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation, special tokens by their names.

        messages: {"role", "content"} each, and whatever else the template knows. `variables`, such
        as `tools`, go to the template as they are. For a model use `encode_chat`: in this text
        nobody can tell a special token from the same letters in a message.
        """
        turns, given = checked(messages), plain(dict(variables))
        everything = {
            "tools": None,
            "documents": None,
            **self._variables,
            **given,
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._lock:  # the budget is the environment's
            self._sandbox.budget = Budget(size_of(turns) + size_of(given))
            return _guarded(lambda: self._template.render(everything))


def chat_template(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, style: str | None = None
) -> ChatTemplate:
    """The chat template of a GGUF file, or of its family where it has none that can be read.

    With `style`, a name in STYLES, that style is taken in its place: "plain" sets turns one below
    the other, for models that only continue texts. Of a broken template a warning is given.
    Raises TokenizerError where there is neither, or no such style.
    """
    variables = {
        f"{name}_token": "" if i is None else tokenizer.token_bytes(i).decode(errors="replace")
        for name, i in (("bos", tokenizer.bos), ("eos", tokenizer.eos))
    }
    if style is not None:
        if style not in STYLES:
            raise TokenizerError(f"no style is called {style!r}: there are {', '.join(STYLES)}")
        return ChatTemplate(STYLES[style], variables, style)
    source = text_of(metadata, KEY)
    style = style_of(tokenizer.special.keys() | _bytes_mark(tokenizer))
    if source:
        try:
            return ChatTemplate(source, variables)
        except TokenizerError as error:
            if style is None:
                raise
            warnings.warn(f"{error}; the {style} style is used in its place", stacklevel=2)
    if style is None:
        raise TokenizerError(
            "the file has no chat template, and its vocabulary none of the tokens that mark turns: "
            "the model was not taught to converse; use `tenarai run` to continue a text, or "
            "`tenarai chat --style plain` to let it go on after each message"
        )
    return ChatTemplate(STYLES[style], variables, style)


def _bytes_mark(tokenizer: Tokenizer) -> set[str]:
    """Llama 2's kind has no marks of its own: what is told by is that it is SentencePiece's."""
    find = getattr(tokenizer, "id_of", lambda piece: None)
    return {piece for piece in ("<0x00>", "</s>") if find(piece) is not None}


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[int]:
    """The ids of a conversation, after the token that begins a text where the model wants it.

    Special tokens come from the template alone: their names in a message, or in `variables` such
    as `tools`, are plain text. Raises TokenizerError for messages that are none, and for a
    template that fails or does too much.
    """
    turns, given = checked(messages), plain(dict(variables))
    mark = free_mark(template.source, turns, given)
    quote = Quoting(tokenizer.special, mark)
    turns = [{**quote(turn), "role": turn["role"]} for turn in turns]
    text = template.render(turns, add_generation_prompt, **quote(given))
    return tokenizer.with_bos(tokenizer.encode_marked(text, mark))


def _guarded(call: Callable[[], Any]) -> Any:
    """Whatever a stranger's template raises, as one TokenizerError."""
    try:
        return call()
    except Refusal as error:
        why = " ".join(str(error).split())
        raise TokenizerError(f"the chat template refuses these messages: {why}") from error
    except Limit as error:
        raise TokenizerError(f"the chat template was stopped: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        why = f"line {error.lineno}: {error.message}"
    except (RecursionError, MemoryError):
        why = "it is too deeply nested"
    except Exception as error:  # a template can raise whatever Python's types raise
        why = str(error) or type(error).__name__
    raise TokenizerError(f"the chat template cannot be used: {' '.join(why.split())[:300]}")
