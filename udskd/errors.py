"""Mistakes that the user can mend. The message is one sentence: what is wrong, where, and what to do."""

import unicodedata

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, surrogates, ends of lines and paragraphs


def printable(text: str) -> str:
    """A text as one line that a terminal shows and does not obey: control characters, line ends and bytes of names that
    are not UTF-8 as escapes, all other characters as they are."""
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
    """The user asked to stop; what is complete has been saved and the message says how to continue."""


class PeerFailed(UdskdError):
    """Another of the processes that train together failed; it says itself why."""
