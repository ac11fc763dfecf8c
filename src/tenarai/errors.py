"""The one error that people are meant to read, and the one warning. The command line prints each
as a single line."""


class TenaraiError(Exception):
    """Something that the user can mend. The message names the thing, what was wrong, what to do."""


class TenaraiWarning(UserWarning):
    """Something that went on, but not as expected. The command line prints it as a single line."""
