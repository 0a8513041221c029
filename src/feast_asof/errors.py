"""The errors that users see; each message says what is wrong, what was given and what to do."""


class AsofError(ValueError):
    """The input cannot be joined, or the cluster cannot be used."""


class SourceNotFoundError(AsofError, FileNotFoundError):
    """A Parquet file or folder does not exist."""


class SourceChangedError(AsofError):
    """A Parquet file was written, replaced or deleted while it was read."""
