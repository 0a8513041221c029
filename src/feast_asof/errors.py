"""The errors users of the store see; each message names what is wrong, what was given and what to do."""


class AsofError(ValueError):
    """Input that cannot be joined, or a cluster that cannot be used."""


class SourceNotFoundError(AsofError, FileNotFoundError):
    """A Parquet file or folder that does not exist."""


class SourceChangedError(AsofError):
    """A Parquet file that somebody writes, replaces or deletes while it is read."""
