"""The exception that means: the user can mend this; and the warning that asks for a report."""


class PixWordError(ValueError):
    """A user's mistake: what was wrong, what was received and what to do, in one line.

    Command lines print the line and exit 2; any other exception is a bug and keeps its traceback.
    """


class BadImage(PixWordError):
    """An image that cannot be used; the message is the reason, without the image's name."""


class PixWordWarning(UserWarning):
    """Something went wrong that changes no result, and that the project would like to hear of."""
