"""The roots of all errors and warnings that a user can act on."""


class MaskCLIPError(ValueError):
    """Something a user gave cannot be used; the one-line message says what to do.

    The command line prints it without a traceback.
    """


class MaskCLIPWarning(UserWarning):
    """Something that works, and probably not as the user thinks."""
