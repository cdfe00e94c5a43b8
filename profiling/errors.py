"""What can be wrong with a file that the reading half is given."""


class TraceError(Exception):
    """A trace is missing, damaged, too large, or does not hold what was asked for; the text is one sentence."""
