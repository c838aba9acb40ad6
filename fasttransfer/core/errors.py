"""The error for anything that the user can put right; every other exception is a bug and keeps its stack trace."""


class InputError(Exception):
    """Bad input: the message is one sentence that names the thing, what is wrong with it and what to do.

    The command line prints it and exits with status 2.
    """


def os_reason(error: OSError) -> str:
    """Return what the system says of an error, as a part of a sentence."""
    return (error.strerror or str(error)).lower()
