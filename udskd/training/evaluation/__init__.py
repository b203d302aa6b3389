"""Metrics of networks on images, and a check of the teacher's predictions."""
