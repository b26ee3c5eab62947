"""Makes pydantic-ai models from their names, for one event loop.

A provider's HTTP client belongs to the event loop that used it first. So there is one `Models` for each event loop. In
it there is one provider for each class, base URL and key, so that fifty agents share one pool of connections.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from axon_zmq.errors import AxonError, ModelError, RequestError
from axon_zmq.suggestions import suggestion
from axon_zmq.worker.adapter import compat
from axon_zmq.worker.registry import offline_models

MAX_CACHED_MODELS: Final = 256
"""Maximum number of models that are kept for reuse. It is limited because clients choose the names."""

ProviderKey = tuple[type[Any], str, str]
"""Class, base URL and API key of a provider."""


class Models:
    """The models of one event loop.

    Args:
        default: The name of the model in `AXON_MODEL`; None if it is not set.
        offline: Whether clients may name offline models (`AXON_OFFLINE_MODELS`).
        ambient: Providers that clients may use with the login of the user who runs the daemon
            (`AXON_AMBIENT_PROVIDERS`). The provider of `default` is added.
    """

    def __init__(self, default: str | None, *, offline: bool = True, ambient: Collection[str] = ()) -> None:
        self.default = default
        self._offline = offline
        self._ambient = frozenset((*ambient, _provider_of(default or "")))
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._lock = Lock()
        """Needed because large requests are read in threads."""
        self._providers: dict[str, Provider[Any]] = {}
        """Providers by their name in pydantic-ai."""
        self._shared: dict[ProviderKey, Provider[Any]] = {}
        """All providers, including the providers of registered agents."""

    def named(self, name: str) -> Model:
        """Return the model with this name: an offline model, or one of pydantic-ai's, such as `openai:gpt-5`.

        Raises:
            RequestError: `unknown_model`.
            ModelError: `model_auth` if the provider's key is missing.
        """
        with self._lock:
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = self._make(name)
                if len(self._models) > MAX_CACHED_MODELS:
                    self._models.popitem(last=False)
            else:
                self._models.move_to_end(name)
            return model

    def named_by_client(self, name: str) -> Model:
        """Return the model with a name that comes from a request: of an agent as data, or instead of an agent's own.

        Raises:
            RequestError: `unknown_model`, also for an offline model if clients may not name these.
            ModelError: As `named`; also `model_auth` if the provider would use the login of the user who runs the
                daemon, and the operator has not configured this.
        """
        if not self._offline and offline_models.is_offline(name):
            raise RequestError(
                "unknown_model",
                f"model {name[:64]!r} is an offline model, which clients of this daemon may not name: use another "
                "model, or set AXON_OFFLINE_MODELS=true (its default is false if AXON_AGENTS is set)",
            )
        self._check_login(_provider_of(name))
        return self.named(name)

    def share_provider(self, model: Model) -> None:
        """Let the model of a registered agent share the provider of other models with the same URL and key."""
        compat.share_provider(model, self._share)

    def _make(self, name: str) -> Model:
        kind, _, spec = name.partition(":")
        if name in offline_models.MODELS_BY_NAME:
            return offline_models.MODELS_BY_NAME[name]()
        if kind == "synthetic":
            return offline_models.synthetic(spec)
        try:
            return infer_model(name, self._provider)
        except AxonError:
            raise
        except (UserError, ValueError, ImportError, NotImplementedError) as error:
            raise RequestError("unknown_model", f"model {name!r}: {_first_line(error)}") from error

    def _check_login(self, provider: str) -> None:
        if provider in self._ambient or not (login := _login_of(provider)):
            return
        if any(os.environ.get(variable) for variable in login.variables):
            return
        set_one = f"set {' or '.join(login.variables[:2])}, or " if login.variables else ""
        raise ModelError(
            "model_auth",
            f"provider {provider!r} would use {login.source}, which the operator has not configured for clients: "
            f"{set_one}allow it with AXON_AMBIENT_PROVIDERS={provider}",
        )

    def _provider(self, name: str) -> Provider[Any]:
        provider = self._providers.get(name)
        if provider is None:
            try:
                provider = self._share(infer_provider(name))
            except UserError as error:
                raise ModelError("model_auth", f"provider {name!r}: {_first_line(error)}") from error
            self._providers[name] = provider
        return provider

    def _share(self, provider: Provider[Any]) -> Provider[Any]:
        # A provider without an API key, such as one with a custom client, is not shared.
        key = str(getattr(provider.client, "api_key", id(provider)))
        return self._shared.setdefault((type(provider), str(provider.base_url), key), provider)


@dataclass(frozen=True, slots=True)
class _Login:
    """Credentials that a provider finds by itself, outside the environment of the process."""

    source: str
    """The credentials, as an error message names them."""
    variables: tuple[str, ...] = ()
    """Environment variables that contain or name the credentials: with one of them, the operator has chosen them."""


_AWS: Final = _Login(
    "the AWS credentials of the machine or of the user who runs the daemon",
    (
        "AWS_BEARER_TOKEN_BEDROCK",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
)
LOGINS: Final[Mapping[str, _Login]] = {
    "openai-codex": _Login("the Codex login (auth.json) of the user who runs the daemon"),
    "google-cloud": _Login(
        "Google's application default credentials of the machine or of the user who runs the daemon",
        ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_API_KEY", "GEMINI_API_KEY"),
    ),
    "bedrock": _AWS,
    "bedrock-mantle": _AWS,
}
"""Providers that find credentials in files of the user or at the machine's cloud; found by reading the providers of
pydantic-ai 2.62 and 2.68."""
KEYED: Final = frozenset(
    (
        *("alibaba", "anthropic", "azure", "azure-responses", "cerebras", "cohere", "crusoe", "deepseek", "elevenlabs"),
        *("fireworks", "github", "github-copilot", "google", "groq", "heroku", "huggingface", "litellm", "meta"),
        *("mistral", "moonshotai", "nebius", "ollama", "openai", "openai-chat", "openai-chatgpt", "openai-decisions"),
        *("openai-responses", "openrouter", "ovhcloud", "sambanova", "sentence-transformers", "snowflake"),
        *("system-one", "together", "typesafe", "vercel", "vllm", "voyageai", "xai", "zai"),
    )
)
"""Providers that take their credentials only from environment variables; found as those of `LOGINS`."""


def unknown_logins(providers: Iterable[str]) -> Iterator[str]:
    """Describe each entry of `AXON_AMBIENT_PROVIDERS` that allows nothing."""
    for name in providers:
        if _login_of(name) is None:
            reason = "takes its credentials only from the environment" if name in KEYED else "is unknown"
            yield f"provider {name!r} {reason}: remove it, or {suggestion(name, LOGINS, 'use one of these')}"


def _provider_of(model: str) -> str:
    """Return the provider in the name of a model; empty if it has none, as offline models."""
    provider, colon, _ = model.partition(":")
    return provider if colon else ""


def _login_of(provider: str) -> _Login | None:
    """Return the login that a provider would use; None if it uses none, or does not exist."""
    # The provider `gateway/…` is only reached with the key of the gateway.
    if not provider or provider in KEYED or provider == "synthetic" or provider.startswith("gateway/"):
        return None
    if provider in LOGINS:
        return LOGINS[provider]
    try:
        infer_provider_class(provider)
    except ValueError:
        return None  # pydantic-ai does not know it either
    except ImportError:
        pass  # its package is not installed
    # A provider of a newer pydantic-ai: nobody has checked yet where it looks for credentials.
    return _Login("credentials that this version of axon-zmq does not know")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
