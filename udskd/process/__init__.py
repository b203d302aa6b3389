"""The process itself: its standard streams, how OpenMP's threads wait, and what malloc keeps. Imports no PyTorch."""
