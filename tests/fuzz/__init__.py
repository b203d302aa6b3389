"""Random cases of four kinds, for as long as wanted: `python -m tests.fuzz --minutes 30`.

A module for each kind draws cases, which are JSON, and runs one: it returns None, or a sentence about what is wrong (a
finding). Cases run in forked children, which may crash, hang, or take too much memory (children.py).
"""
