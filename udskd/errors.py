"""Errors that the user can correct. The message is one sentence: what is wrong, where, and what to do."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = {
    "udskd": ("torch", "numpy"),
    "udskd[train]": (
        *("torchvision", "PIL", "simplejpeg", "safetensors", "rich", "click", "matplotlib", "tomli", "tomli_w"),
    ),
    "udskd[tensorboard]": ("tensorboard",),
}
"""The packages that udskd imports, by the argument of `pip install` that installs them."""

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


class MissingPackage(UdskdError, ImportError):
    """A package is not installed that this use of udskd needs. The message has the command that installs it."""


class Interrupted(UdskdError):
    """The user stopped the run. What is complete is saved, and the message names the command that continues."""


class PeerFailed(UdskdError):
    """Another process of the run failed, and reports its own error."""


@contextmanager
def explain_missing_packages() -> Iterator[None]:
    """Raise MissingPackage in place of the ModuleNotFoundError about one of PACKAGES."""
    try:
        yield
    except ModuleNotFoundError as error:
        for requirement, packages in PACKAGES.items():
            if error.name in packages:
                raise MissingPackage(
                    f"the package {error.name} is not installed; install it with: pip install '{requirement}'"
                ) from None
        raise
