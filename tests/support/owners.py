"""Files that belong to another user of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ANOTHER_USER = 65534
"""Uid of `nobody`."""


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a file, directory or symbolic link to another user.

    Only root can do this. Without root's rights, the functions that report the owner are replaced for this file.
    """
    if os.geteuid() == 0:
        os.lchown(path, ANOTHER_USER, ANOTHER_USER)
        return
    inode = path.lstat().st_ino
    for name in ("stat", "lstat", "fstat"):
        real = getattr(os, name)

        def changed(*arguments: object, real: object = real, **options: object) -> os.stat_result:
            seen: os.stat_result = real(*arguments, **options)  # type: ignore[operator]
            fields = list(seen[:10])
            if seen.st_ino == inode:
                fields[4] = ANOTHER_USER
            return os.stat_result(fields)

        monkeypatch.setattr(os, name, changed)
