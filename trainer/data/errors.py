"""What can be wrong with data."""


class DataError(Exception):
    """A source is missing, damaged, empty or too small; the text is one sentence."""
