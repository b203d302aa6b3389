"""Errors that the user can correct. The message is one sentence: what is wrong, where, and what to do."""

import errno
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = {
    "udskd": ("torch", "numpy"),
    "udskd[train]": (
        *("torchvision", "PIL", "simplejpeg", "safetensors", "rich", "click", "matplotlib", "tomli", "tomli_w"),
    ),
    "udskd[tensorboard]": ("tensorboard",),
    "udskd[timm]": ("timm",),
}
"""The packages that udskd imports, by the argument of `pip install` that installs them."""

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, surrogates, ends of lines and paragraphs
_ORDERS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the order in which a terminal shows a line


def printable(text: str) -> str:
    """A text as one line that is safe to print on a terminal: control characters, line ends, and bytes that are not
    UTF-8 become escapes; all other characters stay."""
    return "".join(_escaped(c) if unicodedata.category(c) in _ESCAPED or c in _ORDERS else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class UdskdError(Exception):
    """Base of every error that the command line prints as one sentence instead of a traceback."""


class ConfigError(UdskdError):
    """A recipe or an option is wrong: unknown key, wrong type, value out of range."""


class NetworkCodeError(ConfigError):
    """The code of a network that is not udskd's raised an error."""

    def __init__(self, message: str, details: str = "") -> None:
        """details: the traceback of that error, which the command line prints below the message."""
        super().__init__(message)
        self.details = details


class DataError(UdskdError):
    """The images are wrong: missing split, empty class, unreadable file, classes that differ."""


class CheckpointError(UdskdError):
    """A checkpoint cannot be read, written, or does not belong to this run."""


class SystemLimit(UdskdError):
    """The system refuses something: memory, a file, a thread or a process, space on a disk."""


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


_EXHAUSTED = (
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
)
_NO_MEMORY = re.compile(
    r"(can't|cannot) allocate memory|not enough memory|out of memory|storage size|failed to map segment", re.IGNORECASE
)
_NO_THREAD = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)


def explain_system_error(error: Exception) -> Exception:
    """A SystemLimit in place of an error that a limit of the system or a file has caused; any other error unchanged.
    For errors at places without a sentence of their own."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, ImportError)) and _NO_MEMORY.search(text)):
        return SystemLimit(
            "there is too little memory: lower training.batch_size, data.image_size or data.workers, or raise the "
            "limit (ulimit -v)"
        )
    if isinstance(error, RuntimeError) and _NO_THREAD.search(text):
        return SystemLimit("the system starts no further thread: lower data.workers, or raise the limit (ulimit -u)")
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _EXHAUSTED):
        files = " (ulimit -n has the limit)" if error.errno == errno.EMFILE else ""
        what = f"{error.filename}: " if error.filename is not None else ""
        return SystemLimit(f"{what}{error.strerror or error}{files}")
    return error
