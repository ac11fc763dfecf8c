"""The one error that people are meant to read, and the one warning. The command line prints each
as a single line."""

import unicodedata

LONGEST = 2000  # characters of a message


class TenaraiError(Exception):
    """Something that the user can mend. The message names the thing, what was wrong, what to do.

    Names and values in it may come from strangers' files: what would begin a line, move the cursor
    or cannot be written shows as an escape, and the middle of a long text is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return "".join(map(_shown, text))


class TenaraiWarning(UserWarning):
    """Something that went on, but not as expected. The command line prints it as a single line."""


def _shown(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode()
    return letter
