"""The one error that people are meant to read. The command line prints it as a single line."""


class TenaraiError(Exception):
    """Something that the user can mend. The message names the thing, what was wrong, what to do."""
