"""Sharded checkpoints: what a run must keep so that it continues as if it had never stopped."""
