"""The device, the other processes, and signals."""
