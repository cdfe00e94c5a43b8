"""What can be wrong with a model."""


class ModelError(Exception):
    """A model cannot be made from what the recipe says; the text is one sentence."""
