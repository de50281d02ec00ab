"""Files and folders that are either the old ones or the new ones, whole, whatever happens in
between.

Everything is written into a locked temporary folder beside the target, flushed to the disk, and
renamed. A process that dies leaves only its temporary folder behind, whose lock the system has
dropped; the next write removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...grammar.diagnostics import Label, LissomError, fail

if sys.platform != "win32":
    import fcntl

_TEMPORARY = re.compile(r"\.lissom-tmp-[0-9a-f]{16}")
_EXCHANGE = 2
_WORKING_DIRECTORY = -100


def write_file(path: Path, data: bytes) -> Path:
    """Write one file in one step: what a command writes for people, such as a plan or a rule file.

    A link stays and what it leads to is replaced; permissions stay. Raises U005, and then the old
    file is untouched.
    """
    target = Path(os.path.realpath(path))
    with _reported("write", target, code="U005"):
        _require_kind(target, stat.S_ISREG, "a regular file", code="U005")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(target.parent) as temporary:
            _write_new(temporary / "file", data)
            _keep_mode(target, temporary / "file")
            os.replace(temporary / "file", target)
        _flush_folder(target.parent)
    return target


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Make `folder` hold exactly `files` (name -> content) in one step, replacing what was there.

    Raises A002, and then the old folder is untouched. The caller has made sure that the old one may
    go.
    """
    target = Path(os.path.realpath(folder))
    with _reported("write", target):
        _require_kind(target, stat.S_ISDIR, "a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        _restore_retired(target)
        with _temporary_folder(target.parent) as temporary:
            for name, data in files.items():
                _write_new(temporary / name, data)
            _flush_folder(temporary)
            _put_in_place(temporary, target)
        _flush_folder(target.parent)
    return target


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises A023 for links, devices, pipes and folders, A018 above the limit, A020 where it cannot be
    read.
    """
    if path.is_symlink():
        raise _not_regular(path)
    # A link put there after the check is refused by O_NOFOLLOW; O_NONBLOCK keeps a pipe from
    # blocking the open.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with _reported("read", path, code="A020"), open(os.open(path, flags), "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(path)
        # Not `limit + 1`: that much memory would be asked for, whatever the file holds.
        data = stream.read(status.st_size + 1) if status.st_size <= limit else b""
    if status.st_size > limit or len(data) > limit:
        raise fail(
            "A018",
            f"`{path.name}` is larger than the {limit} bytes a reader accepts",
            Label(None, where=str(path)),
            help="check where the file comes from; lissom never writes one that large",
        )
    return data


def folder_names(folder: Path) -> list[str]:
    """Sorted names in a folder. Raises A020 where there is no such folder."""
    if not folder.is_dir():
        retired = _retired(Path(os.path.realpath(folder)))
        rest = (
            f"; an interrupted save left the previous one at `{retired}`"
            if retired.exists()
            else ""
        )
        raise fail(
            "A020",
            f"`{folder}` is not a folder{rest}",
            Label(None, where=str(folder)),
            help="give the path of a folder that lissom saved",
        )
    with _reported("read", folder, code="A020"):
        return sorted(os.listdir(folder))


# -- errors ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reported(action: str, path: Path, code: str = "A002") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "nothing at the target was changed" if action == "write" else ""
        raise fail(
            code,
            f"cannot {action} `{path}`: {error.strerror or error}",
            Label(None, where=str(error.filename or path)),
            note=kept,
            help="check the path, the free space and the permissions, then try again",
        ) from error


def _not_regular(path: Path) -> LissomError:
    return fail(
        "A023",
        f"`{path.name}` is a link, a device, a pipe or a folder, not a regular file",
        Label(None, where=str(path)),
        help="replace it with the file itself, or save the artifact again",
    )


def _require_kind(
    target: Path, is_kind: Callable[[int], bool], wanted: str, code: str = "A003"
) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not is_kind(os.stat(target).st_mode):
            raise fail(
                code,
                f"`{target}` exists and is not {wanted}",
                Label(None, where=str(target)),
                help="choose another path, or remove what is there",
            )


# -- the temporary folder --------------------------------------------------------------------------


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    _remove_stale(parent)
    path, lock = _create_locked(parent)
    try:
        yield path
    finally:
        # After the exchange this is the old content. Should removing it fail, the next write
        # removes it.
        shutil.rmtree(path, ignore_errors=True)
        _unlock(lock)


def _create_locked(parent: Path) -> tuple[Path, int | None]:
    """A new folder under an exclusive lock, which lives as long as this process holds it."""
    while True:
        path = parent / f".lissom-tmp-{os.urandom(8).hex()}"
        path.mkdir()
        try:
            lock = _try_lock(path)
        except OSError:
            # Some file systems have no locks. Nobody can lock this folder there, so nobody takes
            # it for a stale one either.
            return path, None
        # Between mkdir and lock another writer may have taken the folder for a stale one and
        # removed it.
        if lock is not None and path.exists():
            return path, lock
        _unlock(lock)


def _remove_stale(parent: Path) -> None:
    for name in filter(_TEMPORARY.fullmatch, os.listdir(parent)):
        with contextlib.suppress(OSError):
            lock = _try_lock(parent / name)
            if lock is not None:
                shutil.rmtree(parent / name, ignore_errors=True)
                _unlock(lock)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a folder, or None where another does or it is gone.

    Raises OSError where folders cannot be locked.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _keep_mode(old: Path, new: Path) -> None:
    """A file that replaces another may be read, written and run by whom the old one could."""
    with contextlib.suppress(FileNotFoundError):
        os.chmod(new, stat.S_IMODE(os.stat(old).st_mode))


def _flush_folder(path: Path) -> None:
    """A rename is on the disk only when the folder that holds the name is."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- the exchange ----------------------------------------------------------------------------------


def _put_in_place(new: Path, target: Path) -> None:
    try:
        os.rename(new, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not target.is_dir():
            raise
        _exchange(new, target)


def _exchange(new: Path, target: Path) -> None:
    if _exchange_in_one_step(new, target):
        return
    # Without a system call that swaps two folders, there is a moment without a target. A process
    # that dies in it leaves the old folder under its retired name, and the next save puts that back
    # before it does anything else.
    retired = _retired(target)
    os.rename(target, retired)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(retired, target)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _exchange_in_one_step(new: Path, target: Path) -> bool:
    """Linux' renameat2 with RENAME_EXCHANGE; False where the system or the file system has no such
    thing.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    paths = (os.fsencode(new), os.fsencode(target))
    return call(_WORKING_DIRECTORY, paths[0], _WORKING_DIRECTORY, paths[1], _EXCHANGE) == 0


def _retired(target: Path) -> Path:
    return target.with_name(f".{target.name}.lissom-old")


def _restore_retired(target: Path) -> None:
    retired = _retired(target)
    if not retired.is_dir() or retired.is_symlink():
        return
    if target.exists():
        shutil.rmtree(retired)
        return
    os.rename(retired, target)
