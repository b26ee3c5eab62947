"""Settings: their sources, and the errors for invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from axon_zmq import settings
from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process.run_dir import backend_endpoint, check_private, private_directory
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.settings import McpServer
from axon_zmq.supervise import conf


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FRONTEND", "RUN_DIR", "AGENTS", "TOOLSETS", "MODEL", "CONFIG"):
        monkeypatch.delenv(f"AXON_{name}", raising=False)


def test_the_environment_overrides_the_file_and_the_file_overrides_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "axon.toml").write_text('run_workers = 3\nmodel = "echo"\n[agents]\nmine = "my.module:agent"\n')
    monkeypatch.setenv("AXON_MODEL", "synthetic:tokens=1")
    loaded = settings.load()
    assert (loaded.run_workers, loaded.model, loaded.agents) == (3, "synthetic:tokens=1", {"mine": "my.module:agent"})


def test_agents_can_be_set_in_the_environment(monkeypatch):
    monkeypatch.setenv("AXON_AGENTS", "a=x:y, b = x.z:w ,")
    assert settings.load().agents == {"a": "x:y", "b": "x.z:w"}


def test_toolsets_can_be_set_in_the_environment_and_in_the_file(tmp_path, monkeypatch):
    (tmp_path / "axon.toml").write_text(SERVERS)
    loaded = settings.load().toolsets
    assert loaded["search"] == "my_app.tools:search"
    files, tickets = loaded["files"], loaded["tickets"]
    assert isinstance(files, McpServer)
    assert (files.command, files.args, files.cwd, files.timeout) == ("npx", ["-y", "server"], "/srv", 5.0)
    assert isinstance(tickets, McpServer)
    assert (tickets.url, tickets.headers) == ("https://x/mcp", {"Authorization": "Bearer ${TOKEN}"})
    assert (tickets.prefix, tickets.approval, tickets.timeout) == ("tickets", True, 30.0)
    monkeypatch.setenv("AXON_TOOLSETS", "a=x:y, b = x.z:w ,")
    assert settings.load().toolsets == {"a": "x:y", "b": "x.z:w"}


SERVERS = """
[toolsets]
search = "my_app.tools:search"
[toolsets.files]
command = "npx"
args = ["-y", "server"]
env = {KEY = "s3cret"}
cwd = "/srv"
timeout = 5
[toolsets.tickets]
url = "https://x/mcp"
headers = {Authorization = "Bearer ${TOKEN}"}
prefix = "tickets"
approval = true
"""


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("x = 5", "toolsets.x: expected module:attribute, or a table with command or url"),
        ('x = "os.system"', "invalid toolset 'x=os.system': expected name=module:attribute"),
        ("x = {}", "toolsets.x: has neither command nor url"),
        ('x = {command = "a", url = "http://s3cret/"}', "toolsets.x: has both command and url"),
        ('x = {command = "a", headers = {K = "s3cret"}}', "toolsets.x: headers can only be used with url"),
        ('x = {url = "http://b/", env = {K = "s3cret"}}', "toolsets.x: env can only be used with command"),
        ('x = {url = "s3cret"}', "toolsets.x.url: invalid URL: expected http://HOST:PORT/PATH"),
        ('x = {command = ""}', "toolsets.x.command: String should have at least 1 character"),
        ('x = {command = "a", env = {K = 5}}', "toolsets.x.env.K: Input should be a valid string"),
        ('x = {command = "a", args = "s3cret"}', "toolsets.x.args: Input should be a valid list"),
        ('x = {command = "a", timeout = 0}', "toolsets.x.timeout: Input should be greater than 0"),
        ('x = {command = "a", prefix = "a b"}', "toolsets.x.prefix: invalid prefix 'a b': expected 1 to 32"),
        ('x = {command = "a", aproval = true}', "toolsets.x.aproval: unknown key; did you mean 'approval'?"),
        ('x = {command = "a", zzz = "s3cret"}', "toolsets.x.zzz: unknown key; known keys: command, args, env"),
        ('"a b" = {command = "a"}', "a b"),
    ],
)
def test_an_invalid_toolset_is_reported_with_a_fix_and_without_its_values(tmp_path, table, says):
    (tmp_path / "axon.toml").write_text(f"[toolsets]\n{table}\n")
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert str(caught.value).startswith("axon.toml: toolsets")
    assert str(caught.value).count("toolsets.x") < 2
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_environment_of_an_mcp_server_is_never_printed(tmp_path):
    (tmp_path / "axon.toml").write_text(SERVERS)
    loaded = settings.load()
    for shown in (repr(loaded), str(loaded.toolsets["files"]), conf.render(loaded)):
        assert "s3cret" not in shown
    with pytest.raises(ValidationError) as caught:  # set by code that does not call `load`
        settings.Settings(toolsets={"x": {"env": "s3cret"}})  # type: ignore[dict-item]
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AXON_AGENTS", "echo", "expected name=module:attribute"),
        ("AXON_AGENTS", "echo=os.system", "expected name=module:attribute"),
        ("AXON_AGENTS", "echo=os:system('x')", "expected name=module:attribute"),
        ("AXON_AGENTS", "a=x:y,a=z:w", "AXON_AGENTS: duplicate name 'a'"),
        ("AXON_TOOLSETS", "echo", "invalid toolset 'echo': expected name=module:attribute"),
        ("AXON_TOOLSETS", "echo=os.system", "invalid toolset 'echo=os.system': expected name=module:attribute"),
        ("AXON_TOOLSET", "x", "did you mean AXON_TOOLSETS"),
        ("AXON_FRONTEND", "tcp://0.0.0.0:5570", "open to other machines"),
        ("AXON_FRONTEND", "tcp://*:5570", "open to other machines"),
        ("AXON_FRONTEND", "tcp://192.0.2.1:5570", "open to other machines"),
        ("AXON_FRONTEND", "5570", "invalid endpoint"),
        ("AXON_FRONTEND", "tcp://127.0.0.1:99999", "with a port from 1 to 65535"),
        ("AXON_FRONTEND", "tcp://:5570", "with a port from 1 to 65535"),
        ("AXON_FRONTEND", "ipc://", "invalid endpoint"),
        ("AXON_FRONTEND", "ipc:///srv/axon/", "invalid endpoint"),
        ("AXON_FRONTEND", "ipc://*", "no fixed path"),
        ("AXON_FRONTEND", "ipc:///srv/a\nb", "control character"),
        ("AXON_FRONTEND", "tcp://*:*", "a port from 1 to 65535"),
        ("AXON_FRONTEND", "tcp://127.0.0.1:0", "a port from 1 to 65535"),
        ("AXON_RUN_WORKERS", "two", "AXON_RUN_WORKERS"),
        ("AXON_RUN_WORKERS", "-1", "AXON_RUN_WORKERS"),
        ("AXON_LOG_LEVEL", "loud", "AXON_LOG_LEVEL"),
        ("AXON_FRONTENT", "x", "did you mean AXON_FRONTEND"),
        ("AXON_CONFIG", "no-such-file.toml", "the file does not exist"),
        ("AXON_CONFIG", "/tmp", "invalid AXON_CONFIG '/tmp': it is not a file"),
    ],
)
def test_an_invalid_setting_is_reported_with_a_fix(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=says.replace("(", "\\(")):
        settings.load()


@pytest.mark.parametrize("text", ["run_wrokers = 3", "run_workers = [", "agents = 5"])
def test_an_invalid_file_is_rejected(tmp_path, text):
    (tmp_path / "axon.toml").write_text(text)
    with pytest.raises(ConfigurationError):
        settings.load()


def test_frontends_on_loopback_addresses_are_accepted():
    for endpoint in (
        "tcp://127.0.0.1:1",
        "tcp://127.1.2.3:65535",
        "tcp://localhost:5570",
        "tcp://[::1]:5570",
        "ipc://x",
    ):
        assert endpoints.check_frontend(endpoint) == endpoint


def test_a_path_too_long_for_a_unix_socket_is_rejected(tmp_path):
    with pytest.raises(ConfigurationError, match="the limit is 107"):
        backend_endpoint(tmp_path / ("x" * 100))


def test_a_run_directory_is_made_private_unless_it_belongs_to_another_user(tmp_path):
    assert private_directory(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "precious").touch()
    with pytest.raises(ConfigurationError, match="has mode 0755 and contains files"):
        private_directory(shared)
    assert shared.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="AXON_RUN_DIR"):
        private_directory(tmp_path / "file")


def test_a_run_directory_is_inspected_without_changing_it(tmp_path):
    check_private(tmp_path / "new" / "run")
    (open_one := tmp_path / "open").mkdir(mode=0o755)
    check_private(open_one)
    assert open_one.stat().st_mode & 0o777 == 0o755
    (open_one / "precious").touch()
    for wrong in (open_one, open_one / "precious", open_one / "precious" / "run"):
        with pytest.raises(ConfigurationError, match="set AXON_RUN_DIR"):
            check_private(wrong)
    assert {path.name for path in tmp_path.iterdir()} == {"open"}


def test_a_number_with_a_unit_is_refused_with_the_fix(monkeypatch):
    for name, value in (("AXON_WORKER_MEMORY", "2GiB"), ("AXON_DRAIN_SECONDS", "60s"), ("AXON_MAX_BODY", "1.5")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"{name}: invalid value '{value}'.* without a unit"):
            settings.load()
        monkeypatch.delenv(name)


def test_the_generated_configuration_contains_settings_that_differ_from_the_defaults():
    changed = settings.load(
        agents={"mine": "my.module:agent"},
        model="openai:50%",
        max_queued=5,
        run_dir=Path("/somewhere else"),
        run_workers=1,
    )
    text = conf.render(changed, python="/opt/py thon", directory="/app")
    assert 'environment=AXON_AGENTS="mine=my.module:agent",AXON_MODEL="openai:50%%"' in text
    assert "command='/opt/py thon' -m axon_zmq.broker" in text
    assert "--max-queued=5" in text
    assert "'--run-dir=/somewhere else'" in text
    assert "file=/somewhere else/supervisor.sock" in text
    assert text.count("[program:run-") == 1


@pytest.mark.parametrize(
    ("changed", "directory", "says"),
    [
        ({"run_dir": Path("/a%b")}, "/app", "invalid run directory '/a%b'"),
        ({"run_dir": Path("/a #b")}, "/app", "invalid AXON_RUN_DIR '/a #b': supervisord's configuration"),
        ({"run_dir": Path("/a\t;b")}, "/app", "cannot contain '\\t;'"),
        ({"run_dir": Path("/a\nb")}, "/app", "cannot contain '\\n'"),
        ({}, "/app #1", "invalid directory '/app #1'"),
        ({"model": 'a"b'}, "/app", "invalid AXON_MODEL 'a\"b'"),
        ({"model": "a\n[program:x]"}, "/app", "invalid environment"),
    ],
)
def test_values_that_supervisord_cannot_read_are_refused(changed, directory, says):
    with pytest.raises(ConfigurationError) as caught:
        conf.render(settings.load(**changed), directory=directory)
    assert says in str(caught.value)


def test_no_key_is_written_into_the_generated_configuration(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    assert "secret" not in conf.render(settings.load())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hang_second = 5", "hang_second: unknown setting; did you mean 'hang_seconds'?"),
        ("zzz = 5", "zzz: unknown setting; known settings: frontend, "),
        ("hang_seconds = 1", "hang_seconds: invalid value 1: input should be greater than or equal to 2"),
        ("agents = 5", "agents: invalid value 5: input should be a valid dictionary"),
        ("agents = {mine = 5}", "agents.mine: invalid value 5: input should be a valid string"),
        ("agents = [", "Invalid value"),
    ],
)
@pytest.mark.parametrize("named", [None, "mine.toml"])
def test_an_invalid_value_from_the_file_is_reported_with_the_file(named, line, says, tmp_path, monkeypatch):
    (tmp_path / (named or "axon.toml")).write_text(line)
    if named:
        monkeypatch.setenv("AXON_CONFIG", named)
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert str(caught.value).startswith(f"{named or 'axon.toml'}: {says}")


def test_an_invalid_value_from_the_environment_is_reported_with_the_variable(tmp_path, monkeypatch):
    (tmp_path / "axon.toml").write_text("hang_seconds = 5")
    monkeypatch.setenv("axon_hang_seconds", "1")
    with pytest.raises(ConfigurationError, match=r"^AXON_HANG_SECONDS: invalid value '1': input"):
        settings.load()


NUMERIC = [name for name, field in settings.Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", NUMERIC)
def test_every_numeric_setting_has_an_upper_limit(name, monkeypatch):
    monkeypatch.setenv(f"AXON_{name.upper()}", "9" * 20)
    with pytest.raises(
        ConfigurationError, match=rf"^AXON_{name.upper()}: invalid value '9+': input should be less than"
    ):
        settings.load()


def test_the_largest_limits_fit_into_a_pong(monkeypatch):
    for name in ("max_timeout_ms", "max_queued", "max_queued_per_client", "max_queued_bytes", "max_body"):
        [largest] = [limit.le for limit in settings.Settings.model_fields[name].metadata if hasattr(limit, "le")]
        monkeypatch.setenv(f"AXON_{name.upper()}", str(largest))
    limits = settings.load().bounds().to_wire()
    assert unpack(pack({"limits": limits}), "pong")["limits"] == limits
