"""The training loop. It knows no method by name."""
