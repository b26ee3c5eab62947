"""Files and paths that other users of the machine cannot influence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axon_zmq.errors import ConfigurationError
from axon_zmq.process import files
from axon_zmq.process.locks import hold_lock
from tests.support.owners import ANOTHER_USER, give_away

APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND
TRUNCATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def check(path: Path) -> None:
    files.check_path(path, "the path", "AXON_RUN_DIR")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of this user in a directory to which all users can write, as in `/tmp`."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "mine").mkdir(mode=0o755)
    return shared / "mine"


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [APPEND, TRUNCATE])
def test_a_private_file_is_created_or_opened_again_with_mode_0600(tmp_path: Path, flags: int):
    path = tmp_path / "file"
    os.close(files.open_private(path, flags))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("old")
    path.chmod(0o644)
    os.close(files.open_private(path, flags))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == ("" if flags & os.O_TRUNC else "old")


@pytest.mark.parametrize("flags", [APPEND, TRUNCATE, os.O_RDONLY])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "fifo", "directory", "another user"])
def test_a_file_that_another_user_could_have_put_there_is_refused_and_not_changed(
    tmp_path: Path, flags: int, kind: str, monkeypatch: pytest.MonkeyPatch
):
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_text("precious")
    target.chmod(0o640)
    match kind:
        case "symbolic link":
            path.symlink_to(target)
        case "hard link":
            path.hardlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path.write_text("precious")
            give_away(path, monkeypatch)
    with pytest.raises(OSError, match=r"it is|it has|belongs to another user|directory"):
        files.open_private(path, flags)
    assert target.read_text() == "precious"
    assert target.stat().st_mode & 0o777 == 0o640
    if kind == "another user":
        assert path.read_text() == "precious"


def test_a_lock_file_that_is_a_symbolic_link_is_refused_and_its_target_is_unchanged(tmp_path: Path):
    (tmp_path / "precious").write_text("unchanged")
    (tmp_path / "front.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigurationError, match=r"cannot lock '.*front.lock': .*symbolic link.*delete it"):
        hold_lock(tmp_path / "front.lock")
    assert (tmp_path / "precious").read_text() == "unchanged"


# --- paths ----------------------------------------------------------------------------------------


def test_paths_below_directories_of_root_and_of_this_user_are_accepted(place: Path, tmp_path: Path):
    check(place / "run")
    check(place / "missing" / "run")
    check(place / ".." / "mine" / "run")
    check(Path("/proc/self/run"))
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "relative").symlink_to(Path("shared") / ".." / "link" / "run")
    check(tmp_path / "link" / "run")
    check(tmp_path / "relative" / "run")


def test_an_element_of_another_user_is_refused_by_name(place: Path, monkeypatch: pytest.MonkeyPatch):
    (place / "run").mkdir()
    give_away(place, monkeypatch)
    with pytest.raises(ConfigurationError) as refused:
        check(place / "run" / "deeper")
    text = str(refused.value)
    assert f"the directory {str(place)!r} (owner uid {ANOTHER_USER}, mode 0755) belongs to another user" in text
    assert "set AXON_RUN_DIR to" in text


@pytest.mark.parametrize("absolute", [True, False])
def test_a_symbolic_link_of_another_user_is_refused_wherever_it_leads(
    place: Path, absolute: bool, monkeypatch: pytest.MonkeyPatch
):
    link = place.parent / "link"
    link.symlink_to(place if absolute else "mine")
    check(link / "run")
    give_away(link, monkeypatch)
    for path in (link, link / "run", place / ".." / "link" / "run"):
        with pytest.raises(ConfigurationError, match=r"the symbolic link '.*link' .* belongs to another user"):
            check(path)


def test_a_link_of_this_user_into_a_directory_of_another_user_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    theirs = place.parent / "theirs"
    (theirs / "run").mkdir(parents=True)
    give_away(theirs, monkeypatch)
    (tmp_path / "link").symlink_to(theirs / "run")
    with pytest.raises(ConfigurationError, match=r"the directory '.*theirs'"):
        check(tmp_path / "link")


@pytest.mark.parametrize(("mode", "is_safe"), [(0o755, True), (0o757, False), (0o777, False), (0o1777, True)])
def test_directories_that_all_users_can_write_to_need_the_sticky_bit(place: Path, mode: int, is_safe: bool):
    place.chmod(mode)
    if is_safe:
        check(place / "run")
        return
    with pytest.raises(ConfigurationError, match=rf"other users can write to '.*mine' .*mode {mode:04o}.*chmod go-w"):
        check(place / "run")


def test_a_directory_is_accepted_if_only_this_users_own_group_can_write_to_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    class Group:
        gr_mem = ("eve",)

    class User:
        pw_name, pw_uid, pw_gid = "me", os.geteuid(), 4711

    place.chmod(0o775)
    fields = list(place.stat()[:10])
    fields[5] = 4711
    status = os.stat_result(fields)
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: status if self == place else real(self))
    monkeypatch.setattr("pwd.getpwall", lambda: [User])
    monkeypatch.setattr("grp.getgrgid", lambda _gid: Group)
    with pytest.raises(ConfigurationError, match="other users can write"):
        check(place / "run")
    Group.gr_mem = ("me",)
    check(place / "run")


def test_symbolic_links_in_a_circle_end_with_an_error(tmp_path: Path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        check(tmp_path / "a" / "run")
