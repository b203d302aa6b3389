"""The training loop. It depends on no method."""
