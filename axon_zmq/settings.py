"""Settings of the daemon, from `AXON_*` environment variables and from `axon.toml`.

Internal: may change in any release. The names and meanings of the settings themselves are public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.protocol import limits
from axon_zmq.protocol.kinds import MODES
from axon_zmq.suggestions import closest, suggestion

Workers = Annotated[int, Field(ge=0, le=256)]
Slots = Annotated[int, Field(ge=1, le=65536)]
DEFAULT_WORKER_MEMORY: Final = 2 * 1024 * limits.MIB
"""Default of `worker_memory`, in bytes. A worker with the example agents uses about 90 MiB, and 300 MiB with 1,024
streams."""
MIN_WORKER_MEMORY: Final = 256 * limits.MIB
"""Lower limit of `worker_memory`, in bytes, except 0."""
DEFAULT_DRAIN_S: Final = 60.0
"""Default of `drain_seconds`. supervisord's `stopwaitsecs` of a worker is derived from the setting and is longer, so
that supervisord does not kill a worker that is still draining."""
MAX_TIMEOUT_LIMIT_MS: Final = 31 * 24 * 3_600_000
"""Upper limit of `max_timeout_ms`: 31 days in milliseconds."""
MAX_QUEUED_LIMIT: Final = 10_000_000
"""Upper limit of `max_queued` and `max_queued_per_client`, in runs."""
MAX_CONNECTIONS_LIMIT: Final = 1_000_000
"""Upper limit of `max_connections` and `max_connections_per_address`."""
_NAME: Final = re.compile(r"[\w.-]+")
_TARGET: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_ALLOWED_SETTING: Final = re.compile(
    r"(extra_body|extra_headers|bedrock_additional_model_requests_fields)\.[\w-]+|(?!extra_)[a-z]\w*"
)
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9-]*")
_NUMBER_FAULTS: Final = {
    **dict.fromkeys(("int_parsing", "int_from_float"), "a whole number"),
    "float_parsing": "a number",
}
"""Expected values, by the type of pydantic's error, if a text is not a number."""
_DEFAULTS: Final = limits.BrokerLimits()
EXAMPLES: Final = {
    "echo": "axon_zmq.agents.echo:agent",
    "assistant": "axon_zmq.agents.assistant:make",
    "weather": "axon_zmq.agents.weather:agent",
}
"""Example agents, which the daemon serves if the operator registers none: import path by name."""


class McpServer(BaseModel):
    """An MCP server: a table in `[toolsets]` with `command` (the worker starts it) or `url` (it is reached over HTTP).

    `${NAME}` in `command`, `args`, `env`, `url` and `headers` is replaced by an environment variable of the worker.
    """

    # Arguments, variables, addresses and headers may hold credentials: they are shown neither in errors nor in `repr`.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    command: Annotated[str, Field(min_length=1)] | None = None
    """Program that the worker starts."""
    args: list[str] = Field(default_factory=list[str], repr=False)
    """Arguments of the program."""
    env: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    """Environment variables of the program. The program inherits only HOME, LOGNAME, PATH, SHELL, TERM and USER from
    the worker."""
    cwd: str | None = None
    """Working directory of the program. Default: the worker's."""
    url: str | None = Field(None, repr=False)
    """HTTP address of the server."""
    headers: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    """HTTP headers of each request to the server."""
    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Seconds within which the server must start and list its tools, at most 600. Default: 30."""
    prefix: str | None = None
    """Prefix of the tools' names, to which `_` is added: at most 32 characters. Default: none."""
    approval: bool = False
    """Whether each tool call needs an approval. Default: False."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "${")):
            raise ValueError("invalid URL: expected http://HOST:PORT/PATH or https://HOST:PORT/PATH")
        return url

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str | None) -> str | None:
        if prefix is not None and not _PREFIX.fullmatch(prefix):
            raise ValueError(f"invalid prefix {prefix!r}: expected 1 to 32 of the characters A-Z a-z 0-9 _ -")
        return prefix

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError(
                "has both command and url: remove one of them"
                if self.command
                else "has neither command nor url: set one of them"
            )
        used, other = ("command", "url") if self.url is None else ("url", "command")
        misplaced = self.model_fields_set & ({"headers"} if used == "command" else {"args", "env", "cwd"})
        if misplaced:
            raise ValueError(f"{min(misplaced)} can only be used with {other}, but this server has {used}")
        return self


class Settings(BaseSettings):
    """All settings of a daemon, validated.

    An environment variable takes precedence over the same name in `axon.toml`, or in the file that `AXON_CONFIG` names.
    """

    model_config = SettingsConfigDict(
        env_prefix="AXON_", extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    frontend: str = Field(
        "tcp://127.0.0.1:5570",
        description="Endpoint for clients: `tcp://HOST:PORT` on a loopback address, or `ipc://PATH`.",
    )
    run_dir: Path = Field(
        Path("run"), description="Directory for sockets, process ids and logs. Only its owner may open it (mode 0700)."
    )
    run_sync_workers: Workers = Field(
        2, description="Number of worker processes for mode `run_sync`, 0 to 256; with 0 the mode is not served."
    )
    run_workers: Workers = Field(
        2, description="Number of worker processes for mode `run`, 0 to 256; with 0 the mode is not served."
    )
    run_stream_workers: Workers = Field(
        2, description="Number of worker processes for mode `run_stream`, 0 to 256; with 0 the mode is not served."
    )
    run_sync_slots: Slots = Field(
        4, description="How many runs a `run_sync` worker executes at a time, each in its own thread; 1 to 65536."
    )
    run_slots: Slots = Field(256, description="How many runs a `run` worker executes at a time; 1 to 65536.")
    run_stream_slots: Slots = Field(
        1024, description="How many runs a `run_stream` worker executes at a time; 1 to 65536."
    )
    agents: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=lambda: dict(EXAMPLES),
        description="Registered agents: `name=module:attribute`, separated by commas, or a table in `axon.toml`. "
        "They replace the example agents.",
    )
    toolsets: Annotated[dict[str, str | McpServer], NoDecode] = Field(
        default_factory=dict[str, str | McpServer],
        description="Registered toolsets: `name=module:attribute`, separated by commas, or a table in `axon.toml`. "
        "MCP servers can only be configured in `axon.toml`.",
    )
    model: str | None = Field(
        None,
        description="Default model, such as `openai-chat:gpt-5-mini`: for agents as data without `model`, and for the "
        "example agent `assistant`.",
    )
    offline_models: bool | None = Field(
        None,
        description="Whether clients may name offline models (`echo`, `synthetic:…`, `test`, `tools`), in agents as "
        "data and as `model` of a request. Registered agents may use them in any case.",
    )
    loop: Literal["auto", "asyncio", "uvloop"] = Field(
        "auto", description="Event loop of the workers: `asyncio`, `uvloop`, or `auto` (`uvloop` if it is installed)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the log records that the daemon's processes write."
    )
    run_loggers: Annotated[list[str], NoDecode] = Field(
        default_factory=list[str],
        description="Python loggers, separated by commas, whose records below `warning` a run may also relay to its "
        "client, in addition to the loggers of the agents' and toolsets' own packages.",
    )
    allowed_model_settings: Annotated[list[str], NoDecode] = Field(
        default_factory=list[str],
        description="Model settings, separated by commas, that requests may set although they are refused by default: "
        "`extra_body.KEY`, `extra_headers.NAME`, or the name of a provider's setting.",
    )
    ambient_providers: Annotated[list[str], NoDecode] = Field(
        default_factory=list[str],
        description="Providers, separated by commas, that clients may use with the login of the machine or of the user "
        "who runs the daemon: `bedrock`, `bedrock-mantle`, `google-cloud`, `openai-codex`.",
    )
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        DEFAULT_DRAIN_S, description="Seconds for which a stopping worker lets its open runs continue; 0 to 3600."
    )
    hang_seconds: Annotated[int, Field(ge=2, le=3600)] = Field(
        _DEFAULTS.hang_seconds,
        description="Seconds without progress after which a worker is killed and replaced; 2 to 3600.",
    )
    worker_memory: Annotated[int, Field(ge=0, le=2**44)] = Field(
        DEFAULT_WORKER_MEMORY,
        description="Memory that each worker may use, in bytes: 268435456 (256 MiB) to 16 TiB, or 0 for no limit. "
        "Linux only.",
    )
    max_body: Annotated[int, Field(ge=1024, le=2**30)] = Field(
        _DEFAULTS.max_body, description="Maximum size of a request body in bytes; 1024 to 1073741824."
    )
    max_timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_LIMIT_MS)] = Field(
        _DEFAULTS.max_timeout_ms, description="Maximum `timeout_ms` of a request, in milliseconds; 1 to 31 days."
    )
    max_queued: Annotated[int, Field(ge=0, le=MAX_QUEUED_LIMIT)] = Field(
        _DEFAULTS.max_queued, description="Maximum number of queued runs in one mode; 0 to 10000000."
    )
    max_queued_per_client: Annotated[int, Field(ge=0, le=MAX_QUEUED_LIMIT)] = Field(
        _DEFAULTS.max_queued_per_client,
        description="Maximum number of queued runs of one client in a mode; 0 to 10000000.",
    )
    max_queued_bytes: Annotated[int, Field(ge=0, le=2**40)] = Field(
        _DEFAULTS.max_queued_bytes,
        description="Maximum total size of queued request bodies, in bytes; at most 1 TiB. One client may use half of "
        "it.",
    )
    max_connections: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS_LIMIT)] = Field(
        _DEFAULTS.max_connections,
        description="Maximum number of client connections; 1 to 1000000. Further ones are closed at once, except "
        "that they replace connections without a message. The broker lowers the number if the limit of open files does "
        "not allow it.",
    )
    max_connections_per_address: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS_LIMIT)] = Field(
        _DEFAULTS.max_connections_per_address,
        description="Maximum number of client connections from one address, except loopback addresses; 1 to 1000000.",
    )
    max_in_flight_bytes: Annotated[int, Field(ge=0, le=2**40)] = Field(
        _DEFAULTS.max_in_flight_bytes,
        description="Maximum total size of the request bodies that one worker has, in bytes; at most 1 TiB. Further "
        "runs wait; bodies of up to 64 KiB do not count.",
    )
    max_in_flight_bytes_per_client: Annotated[int, Field(ge=0, le=2**40)] = Field(
        _DEFAULTS.max_in_flight_bytes_per_client,
        description="Maximum total size of the request bodies of one client that all workers have, in bytes; at most "
        "1 TiB. Further runs wait; bodies of up to 64 KiB do not count.",
    )
    max_waiting_per_client: Annotated[int, Field(ge=0, le=MAX_QUEUED_LIMIT)] = Field(
        _DEFAULTS.max_waiting_per_client,
        description="Number of runs of one client in a mode that may wait for the client's tools without counting "
        "against the slots that the client may use; 0 to 10000000. No waiting run occupies a slot for other clients.",
    )
    max_keep_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_LIMIT_MS)] = Field(
        _DEFAULTS.max_keep_ms,
        description='Milliseconds after which a run with `on_disconnect: "keep"` ends if it only waits for a tool of '
        "a client that is gone; 1 to 31 days.",
    )

    @field_validator("agents", "toolsets", mode="before")
    @classmethod
    def _read_targets(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        pairs = [_pair(item.strip(), info) for item in value.split(",") if item.strip()]
        for number, (name, _) in enumerate(pairs):
            if name in dict(pairs[:number]):
                raise ValueError(f"duplicate name {name!r}: remove one of the entries, or rename it")
        return dict(pairs)

    @field_validator("toolsets", mode="before")
    @classmethod
    def _read_servers(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: entry if isinstance(entry, str) else _server(name, entry) for name, entry in value.items()}

    @field_validator("agents", "toolsets")
    @classmethod
    def _check_targets(cls, targets: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        for name, target in targets.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"invalid name {name!r}: use letters, digits and the characters _ . -")
            if isinstance(target, str) and not _TARGET.fullmatch(target):
                raise ValueError(_invalid_target(f"{name}={target}", info))
        return targets

    @field_validator("run_loggers", "allowed_model_settings", "ambient_providers", mode="before")
    @classmethod
    def _read_names(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("worker_memory")
    @classmethod
    def _check_worker_memory(cls, value: int) -> int:
        if 0 < value < MIN_WORKER_MEMORY:
            raise ValueError(f"invalid value {value}: expected at least {MIN_WORKER_MEMORY} bytes, or 0 for no limit")
        return value

    @field_validator("allowed_model_settings")
    @classmethod
    def _check_allowed(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            if not _ALLOWED_SETTING.fullmatch(entry):
                raise ValueError(
                    f"invalid entry {entry!r}: expected extra_body.KEY, extra_headers.NAME, or the name of a setting"
                )
        return entries

    @field_validator("ambient_providers")
    @classmethod
    def _check_providers(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _PROVIDER.fullmatch(name):
                raise ValueError(f"invalid provider {name!r}: expected a name such as openai-codex, without a model")
        return names

    @field_validator("frontend")
    @classmethod
    def _check_frontend(cls, value: str) -> str:
        try:
            return endpoints.check_frontend(value)
        except ConfigurationError as error:  # pydantic collects only ValueError
            raise ValueError(str(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence: arguments, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(_file()))

    def loggers(self) -> list[str]:
        """Return the loggers from which a run may relay records below `warning` to its client.

        These are the loggers of the packages that the agents and toolsets belong to, and those in `run_loggers`. Other
        libraries are excluded by default because their debug records may contain requests with credentials.

        Returns:
            Names of loggers, sorted.
        """
        targets = [*self.agents.values(), *(each for each in self.toolsets.values() if isinstance(each, str))]
        modules = [target.partition(":")[0] for target in targets]
        # Of this package only the agent's own module is included, not its broker and worker.
        packages = [name if name.startswith("axon_zmq.") else name.partition(".")[0] for name in modules]
        return sorted({*packages, *self.run_loggers})

    def allows_offline_models(self) -> bool:
        """Return whether clients may name offline models."""
        return self.agents == EXAMPLES if self.offline_models is None else self.offline_models

    def workers(self) -> dict[str, int]:
        """Return the number of worker processes of each mode."""
        return {mode: getattr(self, f"{mode}_workers") for mode in MODES}

    def slots(self, mode: str) -> int:
        """Return how many runs a worker of a mode executes at a time."""
        return getattr(self, f"{mode}_slots")

    def bounds(self) -> limits.BrokerLimits:
        """Return the settings that limit what the broker accepts."""
        return limits.BrokerLimits(
            max_body=self.max_body,
            max_timeout_ms=self.max_timeout_ms,
            max_queued=self.max_queued,
            max_queued_per_client=self.max_queued_per_client,
            max_queued_bytes=self.max_queued_bytes,
            max_in_flight_bytes=self.max_in_flight_bytes,
            max_in_flight_bytes_per_client=self.max_in_flight_bytes_per_client,
            max_waiting_per_client=self.max_waiting_per_client,
            max_keep_ms=self.max_keep_ms,
            hang_seconds=self.hang_seconds,
            max_connections=self.max_connections,
            max_connections_per_address=self.max_connections_per_address,
        )


def _invalid_target(target: str, info: ValidationInfo) -> str:
    kind = (info.field_name or "").removesuffix("s")
    return f"invalid {kind} {target!r}: expected name=module:attribute"


def _pair(item: str, info: ValidationInfo) -> tuple[str, str]:
    name, equals, target = item.partition("=")
    if not equals:
        raise ValueError(_invalid_target(item, info))
    return name.strip(), target.strip()


def _server(name: str, table: object) -> McpServer:
    """Validate the table of an MCP server. Errors do not show its values, which may be credentials.

    Raises:
        ValueError: The table is invalid; the message names the table and the key.
    """
    if not isinstance(table, dict | McpServer):
        raise ValueError(f"toolsets.{name}: expected module:attribute, or a table with command or url")
    try:
        return McpServer.model_validate(table)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        places = [".".join(["toolsets", name, *map(str, fault["loc"])]) for fault in faults]
        messages = [_message(fault, McpServer, "key") for fault in faults]
        described = "; ".join(f"{place}: {message}" for place, message in zip(places, messages, strict=True))
        raise ValueError(described) from None


def _message(fault: ErrorDetails, model: type[BaseModel], noun: str) -> str:
    if number := _NUMBER_FAULTS.get(fault["type"]):
        return f"Input should be {number} without a unit"
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ")
    return f"unknown {noun}; {suggestion(str(fault['loc'][-1]), model.model_fields, f'known {noun}s')}"


def _file() -> str:
    return os.environ.get("AXON_CONFIG") or "axon.toml"


def _described(fault: ErrorDetails, overrides: Mapping[str, object]) -> str:
    """Describe one error of pydantic, with the variable, or the file and key, in front."""
    message = _message(fault, Settings, "setting")
    name = str(fault["loc"][0])
    value = fault["input"]
    if message.startswith("Input ") and name != "toolsets" and isinstance(value, str | int | float):
        message = f"invalid value {value!r:.100}: {message[0].lower()}{message[1:]}"
    # pydantic-settings does not report which source a value came from; it reads the environment case-insensitively.
    if name in overrides or any(key.upper() == f"AXON_{name.upper()}" and value for key, value in os.environ.items()):
        return f"AXON_{name.upper()}: {message}"
    place = ".".join(map(str, fault["loc"]))
    # A message of `_server` begins with its place, which is more precise than pydantic's.
    return f"{_file()}: {message}" if message.startswith(f"{place}.") else f"{_file()}: {place}: {message}"


def load(**overrides: Any) -> Settings:
    """Load and validate the settings of this process.

    Args:
        overrides: Settings by name that take precedence over the environment and the file.

    Returns:
        The settings.

    Raises:
        ConfigurationError: A value is invalid or a name is unknown; the message names the variable, or the file and
            the key. It is also raised if the file cannot be read.
    """
    # A variable that begins with AXON_ may belong to another program, as AXON_ELIXIR_DEPS belongs to the tests: only
    # names that look like a misspelled setting are rejected.
    known = {f"AXON_{name.upper()}" for name in Settings.model_fields} | {"AXON_CONFIG"}
    for name in os.environ:
        if name.startswith("AXON_") and name not in known and (near := closest(name, known, 0.85)):
            raise ConfigurationError(f"unknown setting {name}; did you mean {near}?")
    if (file := os.environ.get("AXON_CONFIG")) and not Path(file).is_file():
        reason = "it is not a file" if Path(file).exists() else "the file does not exist"
        raise ConfigurationError(f"invalid AXON_CONFIG {file!r}: {reason}")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_described(fault, overrides) for fault in error.errors())) from None
    except ValueError as error:
        raise ConfigurationError(f"{_file()}: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{_file()}: {error.strerror}") from None
