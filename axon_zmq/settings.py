"""What an operator may set: `AXON_*` in the environment, or the same names in `axon.toml`.

Internal: may change in any release.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
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

Workers = Annotated[int, Field(ge=0, le=256)]
Slots = Annotated[int, Field(ge=1, le=65536)]
DEFAULT_DRAIN_S: Final = 60.0
"""Seconds in which a stopping worker finishes its runs. supervisord's `stopwaitsecs` is above it."""
_NAME: Final = re.compile(r"[\w.-]+")
_TARGET: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_DEFAULTS: Final = limits.BrokerLimits()
EXAMPLES: Final = {
    "echo": "axon_zmq.agents.echo:agent",
    "assistant": "axon_zmq.agents.assistant:make",
    "weather": "axon_zmq.agents.weather:agent",
}
"""The agents that ship, served where the operator names none."""


class McpServer(BaseModel):
    """A table in `[toolsets]`: an MCP server, started with `command` or reached at `url`.

    `${NAME}` in `command`, `args`, `env`, `url` and `headers` stands for a variable of the worker's environment.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    command: Annotated[str, Field(min_length=1)] | None = None
    args: list[str] = Field(default_factory=list[str], repr=False)
    env: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    """Beside HOME, LOGNAME, PATH, SHELL, TERM and USER, the only variables that the server gets of the worker's."""
    cwd: str | None = None
    url: str | None = Field(None, repr=False)
    headers: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Seconds until it must have started and told its tools."""
    prefix: str | None = None
    """Stands, with `_`, before the name of each tool."""
    approval: bool = False
    """Each call waits for an approval."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "${")):
            raise ValueError("is no address: write http://host:port/path")
        return url

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str | None) -> str | None:
        if prefix is not None and not _PREFIX.fullmatch(prefix):
            raise ValueError(f"{prefix!r} is no start of a tool's name: write up to 32 of A-Z a-z 0-9 _ -")
        return prefix

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("has both command and url" if self.command else "needs command or url")
        foreign = self.model_fields_set & ({"headers"} if self.url is None else {"args", "env", "cwd"})
        if foreign:
            raise ValueError(f"{min(foreign)} goes with {'url' if self.url is None else 'command'}")
        return self


class Settings(BaseSettings):
    """All settings, checked. Environment goes before `axon.toml` (or the file that AXON_CONFIG names)."""

    model_config = SettingsConfigDict(
        env_prefix="AXON_", extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    frontend: str = Field("tcp://127.0.0.1:5570", description="Where clients connect.")
    run_dir: Path = Field(Path("run"), description="Sockets, pids and logs; 0700.")
    run_sync_workers: Workers = Field(2, description="Processes of mode run_sync.")
    run_workers: Workers = Field(2, description="Processes of mode run.")
    run_stream_workers: Workers = Field(2, description="Processes of mode run_stream.")
    run_sync_slots: Slots = Field(4, description="Runs at a time in a run_sync process, each a thread.")
    run_slots: Slots = Field(256, description="Runs at a time in a run process.")
    run_stream_slots: Slots = Field(1024, description="Runs at a time in a run_stream process.")
    agents: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=lambda: dict(EXAMPLES), description="name=module:attribute, comma-separated, or a table."
    )
    toolsets: Annotated[dict[str, str | McpServer], NoDecode] = Field(
        default_factory=dict[str, str | McpServer],
        description="name=module:attribute, comma-separated, or a table; MCP servers in axon.toml only.",
    )
    model: str | None = Field(None, description="Default model, such as openai-chat:gpt-5-mini.")
    loop: Literal["auto", "asyncio", "uvloop"] = Field(
        "auto", description="Event loop of the workers; auto: uvloop, where it is installed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Of all processes.")
    run_loggers: Annotated[list[str], NoDecode] = Field(
        default_factory=list[str], description="Loggers that runs may relay, beside those of the agents' own packages."
    )
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        DEFAULT_DRAIN_S, description="How long a stopping worker finishes its runs."
    )
    hang_seconds: Annotated[int, Field(ge=2, le=3600)] = Field(
        _DEFAULTS.hang_seconds, description="How long a worker may make no progress until it is killed."
    )
    max_body: Annotated[int, Field(ge=1024, le=2**30)] = Field(_DEFAULTS.max_body, description="Bytes of a body.")
    max_timeout_ms: Annotated[int, Field(ge=1)] = Field(_DEFAULTS.max_timeout_ms, description="Most of timeout_ms.")
    max_queued: Annotated[int, Field(ge=0)] = Field(_DEFAULTS.max_queued, description="Runs waiting in a mode.")
    max_queued_per_client: Annotated[int, Field(ge=0)] = Field(
        _DEFAULTS.max_queued_per_client, description="Runs of one client waiting in a mode."
    )
    max_queued_bytes: Annotated[int, Field(ge=0)] = Field(_DEFAULTS.max_queued_bytes, description="Bodies waiting.")

    @field_validator("agents", "toolsets", mode="before")
    @classmethod
    def _read_targets(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        pairs = [_pair(item.strip(), _kind(info)) for item in value.split(",") if item.strip()]
        for number, (name, _) in enumerate(pairs):
            if name in dict(pairs[:number]):
                raise ValueError(f"{name} is there twice: leave one out, or give it another name")
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
            if not _NAME.fullmatch(name) or (isinstance(target, str) and not _TARGET.fullmatch(target)):
                raise ValueError(f"{name}={target} is no {_kind(info)}: write name=module:attribute")
        return targets

    @field_validator("run_loggers", mode="before")
    @classmethod
    def _read_names(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("frontend")
    @classmethod
    def _check_frontend(cls, value: str) -> str:
        try:
            return endpoints.check_frontend(value)
        except ConfigurationError as error:
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
        """Arguments, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(_file()))

    def loggers(self) -> list[str]:
        """The loggers that runs may relay: of the agents' and toolsets' own packages, and what the operator adds."""
        targets = [*self.agents.values(), *(each for each in self.toolsets.values() if isinstance(each, str))]
        modules = [target.partition(":")[0] for target in targets]
        packages = [name if name.startswith("axon_zmq.") else name.partition(".")[0] for name in modules]
        return sorted({*packages, *self.run_loggers})

    def workers(self) -> dict[str, int]:
        """Processes for each mode."""
        return {mode: getattr(self, f"{mode}_workers") for mode in MODES}

    def slots(self, mode: str) -> int:
        """Runs at a time in one process of a mode."""
        return getattr(self, f"{mode}_slots")

    def bounds(self) -> limits.BrokerLimits:
        """What the broker takes of these."""
        return limits.BrokerLimits(
            max_body=self.max_body,
            max_timeout_ms=self.max_timeout_ms,
            max_queued=self.max_queued,
            max_queued_per_client=self.max_queued_per_client,
            max_queued_bytes=self.max_queued_bytes,
            hang_seconds=self.hang_seconds,
        )


def _kind(info: ValidationInfo) -> str:
    return (info.field_name or "").removesuffix("s")


def _pair(item: str, kind: str) -> tuple[str, str]:
    name, equals, target = item.partition("=")
    if not equals:
        raise ValueError(f"{item!r} is no {kind}: write name=module:attribute")
    return name.strip(), target.strip()


def _server(name: str, table: object) -> McpServer:
    """An MCP server's table, checked; what is wrong is said without the values, which may be keys.

    Raises:
        ValueError: The message names the table and the key.
    """
    if not isinstance(table, dict | McpServer):
        raise ValueError(f"toolsets.{name}: write module:attribute, or a table with command or url")
    try:
        return McpServer.model_validate(table)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        places = [".".join(["toolsets", name, *map(str, fault["loc"])]) for fault in faults]
        said = "; ".join(f"{place}: {_mend(f, McpServer)}" for place, f in zip(places, faults, strict=True))
        raise ValueError(said) from None


def _mend(fault: ErrorDetails, model: type[BaseModel]) -> str:
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ")
    near = get_close_matches(str(fault["loc"][-1]), model.model_fields, n=1)
    return f"is unknown; did you mean {near[0]}?" if near else f"is unknown; known are {', '.join(model.model_fields)}"


def _file() -> str:
    return os.environ.get("AXON_CONFIG") or "axon.toml"


def _told(fault: ErrorDetails, overrides: Mapping[str, object]) -> str:
    said = _mend(fault, Settings)
    name = str(fault["loc"][0])
    if name in overrides or any(key.upper() == f"AXON_{name.upper()}" and value for key, value in os.environ.items()):
        return f"AXON_{name.upper()}: {said}"
    place = ".".join(map(str, fault["loc"]))
    return f"{_file()}: {said}" if said.startswith(f"{place}.") else f"{_file()}: {place}: {said}"


def load(**overrides: Any) -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: A value is wrong, or a name is unknown; the message names both.
    """
    known = {f"AXON_{name.upper()}" for name in Settings.model_fields} | {"AXON_CONFIG"}
    for name in os.environ:
        if name.startswith("AXON_") and name not in known and (near := get_close_matches(name, known, 1, 0.85)):
            raise ConfigurationError(f"{name} is no setting; did you mean {near[0]}?")
    if (file := os.environ.get("AXON_CONFIG")) and not Path(file).is_file():
        raise ConfigurationError(
            f"AXON_CONFIG names {file!r}, which is {'no file' if Path(file).exists() else 'not there'}"
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_told(fault, overrides) for fault in error.errors())) from None
    except ValueError as error:
        raise ConfigurationError(f"{_file()}: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{_file()}: {error.strerror}") from None
