"""The run directory, and the path of an `ipc://` frontend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axon_zmq.errors import ConfigurationError
from axon_zmq.process.run_dir import check_frontend_path, check_private, private_directory
from tests.support.owners import give_away


def test_a_run_directory_is_created_with_its_parents_for_this_user_only(tmp_path: Path):
    umask = os.umask(0)
    try:
        run_dir = private_directory(tmp_path / "new" / "deeper" / "run")
    finally:
        os.umask(umask)
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert run_dir.parent.stat().st_mode & 0o777 == 0o755
    assert private_directory(run_dir) == run_dir


def test_a_run_directory_in_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = tmp_path / "theirs"
    (theirs / "run").mkdir(parents=True, mode=0o700)
    theirs.chmod(0o777)
    give_away(theirs, monkeypatch)
    for run_dir in (theirs / "run", theirs / "new", theirs / "run" / "deeper"):
        for refuse in (check_private, private_directory):
            with pytest.raises(ConfigurationError, match=r"the directory '.*theirs' .*AXON_RUN_DIR"):
                refuse(run_dir)
    assert sorted(path.name for path in theirs.iterdir()) == ["run"]


def test_a_run_directory_that_contains_files_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir = private_directory(tmp_path / "run")
    (run_dir / "supervisord.log").touch()
    (run_dir / "handover").mkdir()
    planted = run_dir / "handover" / "planted.msgpack"
    planted.touch()
    run_dir.chmod(0o777)
    private_directory(run_dir)
    assert run_dir.stat().st_mode & 0o777 == 0o700
    run_dir.chmod(0o777)
    give_away(planted, monkeypatch)
    for refuse in (check_private, private_directory):
        with pytest.raises(ConfigurationError, match=r"contains '.*planted.msgpack', which belongs to another user"):
            refuse(run_dir)


def test_the_socket_of_an_ipc_frontend_is_only_created_where_nobody_else_can_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir = tmp_path / "run"
    check_frontend_path("tcp://127.0.0.1:5570", run_dir)
    check_frontend_path(f"ipc://{run_dir}/front", run_dir)  # the daemon creates the directory
    check_frontend_path(f"ipc://{tmp_path}/front", run_dir)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs", monkeypatch)
    for folder, says in (
        ("missing", "not writable: create it"),
        ("shared", "all users can create files"),
        ("theirs", "belongs to another user"),
    ):
        with pytest.raises(ConfigurationError, match=f"{says}.*AXON_FRONTEND"):
            check_frontend_path(f"ipc://{tmp_path}/{folder}/front", run_dir)


def test_an_ipc_frontend_never_replaces_a_file_or_a_socket_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir = private_directory(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axon.toml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "axon.toml")
    for path in ("axon.toml", "link", "run"):
        with pytest.raises(ConfigurationError, match="existing file, which is not a socket"):
            check_frontend_path(f"ipc://{path}", run_dir)
    for name in ("broker", "broker.sock", "supervisor.sock"):
        with pytest.raises(ConfigurationError, match="the daemon itself uses"):
            check_frontend_path(f"ipc://run/{name}", run_dir)
    (tmp_path / "same").symlink_to(run_dir)
    with pytest.raises(ConfigurationError, match="the daemon itself uses"):
        check_frontend_path("ipc://same/broker.sock", run_dir)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigurationError, match="AXON_FRONTEND"):
        check_frontend_path("ipc://circle/front", run_dir)
    run_dir.chmod(0o777)  # the daemon sets the mode before it creates the socket
    check_frontend_path("ipc://run/front", run_dir)
    # `mknod` creates the file of a socket without a socket.
    os.mknod(tmp_path / "front", 0o140600)
    check_frontend_path("ipc://front", run_dir)
