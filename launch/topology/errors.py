"""What can be wrong with a topology, a cluster or a placement."""


class TopologyError(Exception):
    """A topology cannot be read, or a mesh cannot be placed; the text is one sentence: where, what, why, what to do."""


_MAX_SHOWN = 40


def shown(value: object) -> str:
    """A piece of untrusted text, short and without characters that speak to a terminal."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return f"{text[:_MAX_SHOWN]}..." if len(text) > _MAX_SHOWN else text
