"""The run itself: the loop, what feeds it, what it trains, and what it leaves behind."""
