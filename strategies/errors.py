"""What can be wrong with a strategy beyond what its `check` can say."""


class StrategyError(Exception):
    """A recipe's value that only `apply`, with the wrapped library at hand, can refuse; the text is one sentence."""


class PluginError(Exception):
    """An installed third-party strategy cannot be used; the text is one sentence."""
