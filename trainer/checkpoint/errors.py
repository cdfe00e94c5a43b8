"""What can be wrong with a checkpoint."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, read or trusted; the text is one sentence."""
