"""The command line, and all that starts, checks and compares runs. Only this floor sees a whole recipe."""
