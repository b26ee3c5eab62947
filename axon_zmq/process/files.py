"""Files and directories that other users of the machine cannot influence.

A path is safe if only root and this user can replace an element of it: each directory belongs to one of them, and
nobody else can write to it. Sticky directories such as `/tmp` are the exception: everybody can create entries there,
but only an entry's owner can replace it. Symbolic links are followed only if they belong to root or this user.

Internal: may change in any release.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections import deque
from pathlib import Path
from typing import Final

from axon_zmq.errors import ConfigurationError

MAX_SYMLINKS: Final = 40
"""Maximum number of symbolic links in one path, as in Linux."""
_SAFE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags of `open_private`: no symbolic link is followed, and a FIFO at the path does not block the process."""


def open_private(path: str | Path, flags: int) -> int:
    """Open a file that belongs only to this user, with mode 0600; usable as the `opener` argument of `open`.

    Other users may be able to write to the file's directory: a symbolic link is not followed, and an existing file is
    not changed before it was checked.

    Args:
        path: Path of the file.
        flags: Flags of `os.open`.

    Returns:
        The file descriptor.

    Raises:
        OSError: The file cannot be opened; or at the path is a symbolic link, a file of another user, a file with more
            than one hard link, or something that is not a regular file.
    """
    try:
        descriptor = os.open(path, (flags & ~os.O_TRUNC) | _SAFE_FLAGS, 0o600)
    except OSError as fault:
        # ELOOP (EMLINK on FreeBSD) is a symbolic link, ENXIO a socket, or a FIFO without a reader.
        if fault.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise _refused(path, "it is a symbolic link, or not a regular file") from None
        raise
    try:
        _check_file(path, os.fstat(descriptor))
        os.fchmod(descriptor, 0o600)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_file(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "it is not a regular file")
    if status.st_uid != os.geteuid():
        raise _refused(path, f"it belongs to another user (uid {status.st_uid})")
    # With a hard link, another user could have one of this user's own files truncated or overwritten.
    if status.st_nlink > 1:
        raise _refused(path, f"it has {status.st_nlink} hard links")


def _refused(path: str | Path, reason: str) -> PermissionError:
    return PermissionError(errno.EPERM, f"the file is not safe to use, {reason}; delete it", str(path))


def check_path(path: Path, purpose: str, fix: str, sets_mode: bool = False) -> None:
    """Check that only root and this user can replace an element of a path. Missing elements are not checked.

    Args:
        path: The path; the process changes nothing.
        purpose: What the path is, for the error message, such as `run directory '/srv/run'`.
        fix: The setting to change, for the error message, such as `AXON_RUN_DIR`.
        sets_mode: Whether the caller sets the mode of the last element, if that belongs to this user.

    Raises:
        ConfigurationError: Another user could replace an element; the message names the element, its owner and mode,
            and how to fix it.
        OSError: An element cannot be examined, or the path has too many symbolic links.
    """
    elements = deque(path.absolute().parts[1:])
    # The owner of the root directory can replace everything. In a user namespace that does not map root, this is not
    # uid 0 but the overflow uid.
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}
    place, links = Path("/"), 0
    _check_element(place, place.lstat(), trusted, purpose, fix)
    while elements:
        name = elements.popleft()
        if name == "..":
            place = place.parent  # `place` contains no symbolic link, so this is the parent that the kernel uses
            continue
        element = place / name
        try:
            status = element.lstat()
        except FileNotFoundError:
            return
        is_last = not elements and not stat.S_ISLNK(status.st_mode)
        if not (sets_mode and is_last and status.st_uid == os.geteuid()):
            _check_element(element, status, trusted, purpose, fix)
        if not stat.S_ISLNK(status.st_mode):
            place = element
            continue
        links += 1
        if links > MAX_SYMLINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = element.readlink()
        if target.is_absolute():
            place = Path("/")
        elements.extendleft(reversed([part for part in target.parts if part != "/"]))


def _check_element(element: Path, status: os.stat_result, trusted: set[int], purpose: str, fix: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    shown = f"{str(element)!r} (owner uid {status.st_uid}, mode {mode:04o})"
    is_link = stat.S_ISLNK(status.st_mode)
    if status.st_uid not in trusted:
        kind = "symbolic link" if is_link else "directory" if stat.S_ISDIR(status.st_mode) else "file"
        raise ConfigurationError(
            f"{purpose} is not safe: the {kind} {shown} belongs to another user, who could replace what is below it; "
            f"set {fix} to a path of which every element belongs to you or root"
        )
    # The mode of a symbolic link means nothing.
    if not is_link and mode & 0o022 and not mode & stat.S_ISVTX and not _is_private_group(status, mode):
        raise ConfigurationError(
            f"{purpose} is not safe: other users can write to {shown}; remove that permission "
            f"(`chmod go-w {element}`), or set {fix} to another path"
        )


def _is_private_group(status: os.stat_result, mode: int) -> bool:
    """Whether only the group can write, and nobody but root and this user is in that group.

    Many systems give each user a group of the same name and a umask of 002, so directories are writable for that group.
    """
    if mode & 0o002:
        return False
    if status.st_gid == 0:
        return True  # whoever is in root's group is an administrator
    try:
        members = set(grp.getgrgid(status.st_gid).gr_mem)
    except KeyError:  # as in a container that runs with arbitrary ids
        return status.st_gid == os.getegid()
    users = pwd.getpwall()
    members |= {user.pw_name for user in users if user.pw_gid == status.st_gid}
    return members <= {user.pw_name for user in users if user.pw_uid in (0, os.geteuid())}


def check_owned(directory: Path, purpose: str, fix: str) -> None:
    """Check that everything in a directory belongs to this user.

    Files of other users can be in it if they could write to it before its mode was changed.

    Raises:
        ConfigurationError: An entry belongs to another user.
        OSError: The directory cannot be read.
    """
    for path in directory.rglob("*"):
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:  # another process of the daemon has just deleted or renamed it
            continue
        if owner != os.geteuid():
            raise ConfigurationError(
                f"{purpose} is not safe: it contains {str(path)!r}, which belongs to another user (uid {owner}); "
                f"delete that file, or set {fix} to a new directory"
            )
