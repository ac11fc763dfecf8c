"""The one error that people are meant to read, and the one warning. The command line prints each
as a single line."""

import unicodedata


class TenaraiError(Exception):
    """Something that the user can mend. The message names the thing, what was wrong, what to do.

    Names in it may come from strangers' files: what would begin a line, move the cursor or cannot
    be written shows as an escape.
    """

    def __str__(self) -> str:
        return "".join(map(_shown, super().__str__()))


class TenaraiWarning(UserWarning):
    """Something that went on, but not as expected. The command line prints it as a single line."""


def _shown(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode()
    return letter
