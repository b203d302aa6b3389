"""Errors that the user can correct. The message is one sentence: what is wrong, where, and what to do."""

import unicodedata

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, surrogates, ends of lines and paragraphs


def printable(text: str) -> str:
    """A text as one line that is safe to print on a terminal: control characters, line ends, and bytes that are not
    UTF-8 become escapes; all other characters stay."""
    return "".join(_escaped(c) if unicodedata.category(c) in _ESCAPED else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class UdskdError(Exception):
    """Base of every error that the command line prints as one sentence instead of a traceback."""


class ConfigError(UdskdError):
    """A recipe or an option is wrong: unknown key, wrong type, value out of range."""


class DataError(UdskdError):
    """The images are wrong: missing split, empty class, unreadable file, classes that differ."""


class CheckpointError(UdskdError):
    """A checkpoint cannot be read, written, or does not belong to this run."""


class Interrupted(UdskdError):
    """The user stopped the run. What is complete is saved, and the message names the command that continues."""


class PeerFailed(UdskdError):
    """Another process of the run failed, and reports its own error."""
