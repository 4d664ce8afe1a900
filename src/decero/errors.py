"""The error for users, and the entry point that prints it as one line."""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT, errno.ESTALE)
CLEANUPS: list[Callable[[], None]] = []  # called when a command ends with a UserError


class UserError(Exception):
    """State in one line what is wrong, where, the nearest valid name and the fix.

    A command that raises it ends with exit code 2. A message over 1000 characters (it may quote a very long column
    name) loses its middle, because the fix comes last.
    """

    def __init__(self, message: str):
        super().__init__(message if len(message) <= 1000 else f"{message[:700]} ... {message[-280:]}")


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return `"; did you mean optim.learning_rate?"`, or "" when no valid name is close."""
    near = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def regular_file(path: str | os.PathLike, most_bytes: int = 2**63) -> Path:
    """Return the path of a file that can be read to its end; a pipe or a device could keep a reader forever.

    Raises UserError: no such file (with the nearest name in its folder), a folder, a pipe, a device, a socket, a loop
    of links, a name that is too long, a file over `most_bytes`.
    """
    path = Path(path)
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        folder = path.parent
        names = os.listdir(folder) if os.path.isdir(folder) and os.access(folder, os.R_OK) else []
        near = did_you_mean(path.name, (name for name in names if Path(name).suffix == path.suffix), f"{folder}/")
        why = "; the link leads nowhere" if os.path.islink(path) else near
        raise UserError(f"{path}: no such file{why}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot read this file: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise UserError(f"{path}: this is a {kinds.get(stat.S_IFMT(found.st_mode), 'device')}; give a file")
    if found.st_size > most_bytes:
        raise UserError(f"{path}: {found.st_size:,} bytes; such a file has at most {most_bytes:,}")
    return path


def root_line(error: BaseException) -> str:
    """Return the first line of a library's error message: that of the root cause, where there is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def run_script(main: Callable[[], None]) -> None:
    """Run a command. A `UserError` becomes one line on standard error and exit code 2; Ctrl-C gives exit code 130.

    File errors of the environment (disk full, read-only, broken or missing) also become one line and exit code 2.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # a closed pipe is noticed here, not while the interpreter shuts down
    except UserError as error:
        while CLEANUPS:
            CLEANUPS.pop()()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all processes of a machine raise the same error; print it once
            _print_error(f"error: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... --help | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        while CLEANUPS:
            CLEANUPS.pop()()
        file = f"{error.filename}: " if error.filename else ""
        fix = "fix this, then start the same command again (a run with --resume)"
        _print_error(f"error: {file}{error.strerror}; {fix}")
        sys.exit(2)
    except RuntimeError as error:
        if not _lost_other_processes(error):
            raise
        reason = " ".join(str(error).split())[:200]
        rank, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "several")
        fix = "all checkpoints are intact; start the same command again with --resume"
        _print_error(f"error: process {rank} of {size} lost the other processes ({reason}); {fix}")
        os._exit(2)  # a normal exit would wait for processes that no longer answer


def _print_error(line: str) -> None:
    """Write the line in one call.

    With unbuffered output (launchers) `print` writes the line and its end separately, and other processes write
    in between.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _lost_other_processes(error: RuntimeError) -> bool:
    """Tell whether the error is gloo's or NCCL's for a process that ended or did not answer in time."""
    signs = ("timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe")
    return "RANK" in os.environ and any(sign in str(error).lower() for sign in signs)
