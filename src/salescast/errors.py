"""The exception for errors that a user can cause and fix."""


class UserError(Exception):
    """A message that says what is wrong, what was given and what to do; shown as one line without a traceback."""
