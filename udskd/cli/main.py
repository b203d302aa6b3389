"""Runs a command, and reports an error as one line and an exit code."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from udskd.cli.commands import root
from udskd.errors import Interrupted, PeerFailed, SystemLimit, UdskdError, explain_system_error
from udskd.process import streams

COMPLETE = "_UDSKD_COMPLETE"  # click's name for the environment variable in which a shell requests completions


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 2 for a mistake that the user can correct; 130 when interrupted; 141
    when the reader of the output has ended, as in `udskd recipes | head -1`."""
    streams.open_missing()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    except Exception:
        if not _on_several_gpus():
            raise
        traceback.print_exc()
        code = 1
    if code and _on_several_gpus():  # at exit, NCCL would wait for the other processes, which wait for this one
        sys.stdout.flush()
        os._exit(code)
    return code


def _on_several_gpus() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and int(os.environ.get("WORLD_SIZE") or 1) > 1 and bool(torch.cuda.is_initialized())


def _run(argv: list[str]) -> int:
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        return _mistake(error)
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # all processes of a run stop together; rank 0 reports it
            _print_error(str(error))
        return 130
    except PeerFailed as error:
        if str(error):
            _print_error(f"error: {error}")
        return 1
    except UdskdError as error:
        _print_error(f"error: {error}")
        for line in getattr(error, "details", "").splitlines():
            streams.print_error(line)
        return 2
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        streams.discard(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is not None or not _is_output_failing():
            return _system_error(error)
        streams.discard(sys.stdout)
        _print_error(f"error: the output cannot be written: {error.strerror}")
        return 2
    except (MemoryError, RuntimeError, ImportError) as error:
        return _system_error(error)


def _dispatch(argv: list[str]) -> int:
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(root, {}, "udskd", COMPLETE, instruction)
    try:
        with root.make_context("udskd", argv) as context:
            return root.invoke(context) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.exceptions.Exit as stop:  # after --help and --version
        return stop.exit_code


def _mistake(error: click.ClickException) -> int:
    """Report a mistake in the command line. All processes that torchrun started find the same one. Only the first on
    each machine reports it; the others end with 0, which torchrun does not take for the cause of a failure."""
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("LOCAL_RANK", "0") != "0":
        return 0
    message, context = error.format_message(), getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context else ""
    _print_error(f"error: {message.rstrip('.')}{hint}")
    return 2


def _system_error(error: Exception) -> int:
    """Report an error that a limit of the system or a file has caused. Raises any other error."""
    explained = explain_system_error(error)
    if not isinstance(explained, SystemLimit):
        raise error
    _print_error(f"error: {explained}")
    return 2


def _print_error(message: str) -> None:
    streams.print_error(f"udskd: {message}")


def _is_output_failing() -> bool:
    """Whether the standard output cannot be written, as on a full disk. The error may also be that of another file."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _is_output_closed() -> bool:
    """Whether the reader of the standard output has closed it. The broken pipe may also lead to a worker process."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
