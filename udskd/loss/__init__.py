"""The loss: one function and one module over every backend, and what they are made of."""
