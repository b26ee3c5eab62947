"""Checks the `model_settings` of requests.

A client may tune the answers of the model. It may not choose another model, number of answers, conversation or set of
tools than the request and the agent define, nor credentials or addresses, unless the operator allows it
(`AXON_ALLOWED_MODEL_SETTINGS`). Settings that registered agents have in Python are not checked.

Internal: may change in any release.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_ai.settings import ModelSettings

from axon_zmq.protocol.requests import from_validation, invalid, pointer_of
from axon_zmq.suggestions import suggestion
from axon_zmq.worker.adapter import compat


@with_config(ConfigDict(arbitrary_types_allowed=True))
class _Settings(ModelSettings, total=False):
    """pydantic-ai's settings; pydantic does not know the type `httpx.Timeout`, which `timeout` has if httpx exists."""


_SETTINGS: Final = TypeAdapter(_Settings)
_RAW_BODIES: Final = ("extra_body", "bedrock_additional_model_requests_fields")
"""Settings whose keys are added to the body of the request to the provider, and replace keys of the same name."""
_NESTED_BODIES: Final = frozenset(("extrabody", "generationconfig", "config"))
"""Keys of a body, as `_plain_key` returns them, whose values hold further parameters of the request."""

_MODEL: Final = "it would select another model than the request names"
_COUNT: Final = "it would make the provider generate several answers, of which all but one are paid for and dropped"
_CONVERSATION: Final = "it would replace the agent's instructions, prompt or history"
_TOOLS: Final = "it would replace the agent's tools"
_FORM: Final = "it would change the form of the response, which could then not be read"
_ACCOUNT: Final = "credentials and addresses belong to the operator"
REFUSED_IN_BODY: Final[Mapping[str, str]] = {
    **dict.fromkeys(("model", "models", "engine", "deployment", "fallbacks", "preset", "route"), _MODEL),
    **dict.fromkeys(("n", "best_of", "candidate_count", "num_generations", "num_return_sequences"), _COUNT),
    **dict.fromkeys(
        (
            *("messages", "input", "prompt", "instructions", "system", "system_instruction", "contents"),
            *("conversation", "previous_response_id", "cached_content"),
        ),
        _CONVERSATION,
    ),
    **dict.fromkeys(("tools", "functions", "mcp_servers", "plugins"), _TOOLS),
    **dict.fromkeys(("stream", "stream_options", "background"), _FORM),
    **dict.fromkeys(("api_key", "api_base", "base_url", "api_version", "organization", "user_config"), _ACCOUNT),
}
"""Keys of `extra_body` that are refused by default, with the reason. They are compared without case and `_`, because
some providers also accept `candidateCount` for `candidate_count`."""
REFUSED_SETTINGS: Final[Mapping[str, str]] = {
    "openrouter_models": _MODEL,
    "openrouter_preset": _MODEL,
    "bedrock_inference_profile": _MODEL,
}
"""Providers' settings that are refused by default, with the reason."""
_REFUSED_WORDS: Final = frozenset(
    (
        *("auth", "authorization", "authentication", "key", "apikey", "token", "secret", "password", "credential"),
        *("credentials", "cookie", "cookie2", "signature", "account", "organization", "project", "tenant", "amz"),
        *("subscription", "host", "url", "uri", "target", "endpoint", "forwarded", "proxy", "rewrite", "override"),
        *("model", "models", "provider", "deployment", "route", "config"),
        *("connection", "upgrade", "expect", "te", "trailer", "via", "ip"),
    )
)
"""Words that make the name of a header refused: it may hold credentials, select who pays, or change where and how a
request is sent."""
_HTTP_HEADERS: Final = frozenset(("keep-alive", "transfer-encoding"))
"""Headers of the HTTP connection that are refused; all that begin with `content-` are, too."""
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
_CREDENTIAL_SETTING: Final = re.compile(
    r"key|token|secret|password|credential|auth|url|endpoint|organization|project|region|profile|client|account"
)
UNKNOWN: Final = "is unknown: remove it or correct its spelling"


def checked(
    settings: Mapping[str, object] | None, pointer: str = "/model_settings", allowed: Collection[str] = ()
) -> dict[str, object]:
    """Return the settings of a request, or of an agent as data, with the types of pydantic-ai.

    Args:
        settings: The value in the body.
        pointer: Its JSON pointer.
        allowed: What the operator allows: `extra_body.KEY`, `extra_headers.NAME`, or the name of a setting.

    Raises:
        RequestError: `invalid_request`, with the pointer of the setting, key or header, if it is unknown, invalid, or
            not allowed; the message names the entry of `AXON_ALLOWED_MODEL_SETTINGS` that would allow it.
    """
    if not settings:
        return {}
    common = ModelSettings.__annotations__
    for key in settings:
        if key not in common:
            _check_own(key, pointer)
    faults = list(_faults(settings, frozenset(map(_plain_entry, allowed))))
    if faults:
        raise invalid([(pointer + place, fault) for place, fault in faults])
    try:
        valid = _SETTINGS.validate_python({key: value for key, value in settings.items() if key in common})
    except ValidationError as error:
        raise from_validation(error, pointer) from None
    own = {key: value for key, value in settings.items() if key not in common}
    return {**cast("dict[str, object]", valid), **own}


def unknown_entries(allowed: Iterable[str]) -> Iterator[str]:
    """Describe each entry of `AXON_ALLOWED_MODEL_SETTINGS` that names a setting which is not refused by default."""
    for entry in allowed:
        if "." not in entry and entry not in REFUSED_SETTINGS:
            hint = suggestion(entry, REFUSED_SETTINGS, "use one of these")
            yield f"setting {entry!r} is not refused by default: remove it, or {hint}"


def _check_own(key: str, pointer: str) -> None:
    """Raise if a key is not the setting of any provider."""
    if key in compat.provider_settings():
        return
    fault = UNKNOWN
    if _CREDENTIAL_SETTING.search(key.lower()):
        fault = (
            "is not a model setting: credentials and addresses of providers belong to the operator, who sets them as "
            "environment variables of the daemon, such as OPENAI_API_KEY and OPENAI_BASE_URL"
        )
    raise invalid([(pointer + pointer_of([key]), fault)])


def _faults(settings: Mapping[str, object], allowed: Collection[str]) -> list[tuple[str, str]]:
    """Return the pointer and the message of everything in the settings that is not allowed or malformed."""
    faults = [
        ("/" + key, _refusal(reason, key))
        for key, reason in REFUSED_SETTINGS.items()
        if key in settings and _plain_entry(key) not in allowed
    ]
    for name in _RAW_BODIES:
        if settings.get(name) is not None:
            faults += _faults_in_body(settings[name], name, [name], allowed)
    headers = settings.get("extra_headers")
    if isinstance(headers, Mapping):  # anything else is refused with the other types
        for header, value in headers.items():
            if fault := _fault_of_header(str(header), value, allowed):
                faults.append((pointer_of(["extra_headers", str(header)]), fault))
    return faults


def _faults_in_body(body: object, name: str, steps: list[int | str], allowed: Collection[str]) -> list[tuple[str, str]]:
    if not isinstance(body, Mapping):
        return [(pointer_of(steps), "must be a map")]
    faults: list[tuple[str, str]] = []
    for each, value in body.items():
        key = str(each)
        plain = _plain_key(key)
        if (reason := _REASONS.get(plain)) and _plain_entry(f"{name}.{key}") not in allowed:
            faults.append((pointer_of([*steps, key]), _refusal(reason, f"{name}.{key}")))
        elif plain in _NESTED_BODIES and isinstance(value, Mapping):
            faults += _faults_in_body(value, name, [*steps, key], allowed)
    return faults


def _fault_of_header(name: str, value: object, allowed: Collection[str]) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return "is not the name of an HTTP header"
    if isinstance(value, str) and not _HEADER_VALUE.fullmatch(value):
        return "must have a value of at most 8192 ASCII characters without line breaks and other control characters"
    lower = name.lower()
    is_refused = (
        lower.startswith(("content-", "proxy-", "sec-", "x-forwarded", "x-original"))
        or lower in _HTTP_HEADERS
        or not _REFUSED_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", lower))
        or lower.endswith(("auth", "key", "token", "secret", "authorization"))
    )
    if not is_refused or _plain_entry(f"extra_headers.{lower}") in allowed:
        return None
    return _refusal("it may hold credentials, or change where and how the request is sent", f"extra_headers.{lower}")


def _refusal(reason: str, entry: str) -> str:
    return f"may not be set by a request: {reason}; the operator can allow it with AXON_ALLOWED_MODEL_SETTINGS={entry}"


def _plain_key(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _plain_entry(entry: str) -> str:
    """Return an entry of the allowed settings in the form in which entries are compared."""
    name, dot, key = entry.strip().partition(".")
    return f"{name}{dot}{key.lower() if name == 'extra_headers' else _plain_key(key)}"


_REASONS: Final = {_plain_key(key): reason for key, reason in REFUSED_IN_BODY.items()}
