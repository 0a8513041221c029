"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """What is wrong, what was given, what to do: shown as one line, without a traceback."""
