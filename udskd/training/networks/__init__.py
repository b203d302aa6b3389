"""Networks in training, and the frozen teacher."""
