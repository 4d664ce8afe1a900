"""The error for users, and the entry point that prints it as one line."""

import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

# Errors of the machine, not of the program: number -> what to do.
ENVIRONMENT = dict.fromkeys(
    (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ESTALE,
        errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ENXIO, errno.ENODEV,
        errno.ENOMEM,
    ),
    "fix this",
) | {
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, which hold too many files open",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the link that leads back to itself",
}  # fmt: skip
KILLED_WORKER = ("DataLoader worker (pid", "subprocesses has abruptly died")  # torch's words, and those of datasets
AGAIN = "then start the same command again (a run with --resume)"
CLEANUPS: list[Callable[[], None]] = []  # called when a command ends with a UserError


class UserError(Exception):
    """State in one line what is wrong, where, the nearest valid name and the fix.

    A command that raises it ends with exit code 2. A message over 1000 characters (it may quote a very long column
    name) loses its middle, because the fix comes last. Of an error in a DataLoader worker, torch makes a message with
    the whole traceback; its last line is kept.
    """

    def __init__(self, message: str):
        message = re.sub(r"\ACaught \w+ in .*\w+Error: ", "", message, flags=re.DOTALL).strip()
        super().__init__(message if len(message) <= 1000 else f"{message[:700]} ... {message[-280:]}")


class WriteError(UserError):
    """State that a file or folder cannot be written: full, read-only, gone. Other settings would not help."""


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


def what_failed(error: Exception) -> tuple[str, str] | None:
    """Return reason and fix for an error of the machine (disk, permissions, limits); None for any other error.

    Libraries written in Rust raise their own errors, which only quote the number: "(os error 28)".
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (quoted := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(quoted[1])
    if number not in ENVIRONMENT:
        return None
    file = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{file}{getattr(error, 'strerror', None) or os.strerror(number)}", ENVIRONMENT[number]


def write_error(error: Exception, what: str = "") -> WriteError | None:
    """Return the error of the machine as a WriteError, which begins with `what`; None for any other error."""
    found = what_failed(error)
    return WriteError(f"{what}{found[0]}; {found[1]}, {AGAIN}") if found else None


def missing_package(error: BaseException) -> str | None:
    """Return the package that a library's error message asks for, such as sentencepiece; None for any other error."""
    asks = r"requires the (\w+) library|need to install (\w+)|[Nn]o module named '([\w-]+)"
    found = re.search(asks, str(error))
    return next(filter(None, found.groups())).lower() if found else None


def run_script(main: Callable[[], None]) -> None:
    """Run a command. A `UserError` becomes one line on standard error and exit code 2; Ctrl-C gives exit code 130.

    Errors of the machine (disk full, read-only, too many files) and the death of a worker process also become one line
    and exit code 2.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # a closed pipe is noticed here, not while the interpreter shuts down
    except UserError as error:
        _end(" ".join(str(error).split()), once=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... --help | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if found := write_error(error):
            _end(str(found))
        reason = " ".join(str(error).split())[:200]
        if any(sign in reason for sign in KILLED_WORKER):
            fix = "free memory, or lower training.dataloader_num_workers or data.num_proc"
            _end(f"a worker process was killed, perhaps for lack of memory ({reason}); {fix}, {AGAIN}")
        if not _lost_other_processes(error):
            raise
        rank, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "several")
        fix = "all checkpoints are intact; start the same command again with --resume"
        _print_error(f"error: process {rank} of {size} lost the other processes ({reason}); {fix}")
        os._exit(2)  # a normal exit would wait for processes that no longer answer


def _end(line: str, once: bool = False) -> NoReturn:
    """Undo what must not stay, print the line and exit. once: every process of the machine has the same line."""
    while CLEANUPS:
        CLEANUPS.pop()()
    if not once or os.environ.get("LOCAL_RANK", "0") == "0":
        _print_error(f"error: {line}")
    sys.exit(2)


def _print_error(line: str) -> None:
    """Write the line in one call.

    With unbuffered output (launchers) `print` writes the line and its end separately, and other processes write
    in between.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _lost_other_processes(error: Exception) -> bool:
    """Tell whether the error is gloo's or NCCL's for a process that ended or did not answer in time."""
    signs = ("timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe")
    return (
        isinstance(error, RuntimeError) and "RANK" in os.environ and any(sign in str(error).lower() for sign in signs)
    )
