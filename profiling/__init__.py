"""Names, recording and reading of what a training step does. The reading half imports no torch."""
