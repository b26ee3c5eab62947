"""Makes pydantic-ai models from their names, for one event loop.

A provider's HTTP client belongs to the event loop that used it first. So there is one `Models` for each event loop. In
it there is one provider for each class, base URL and key, so that fifty agents share one pool of connections.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any, Final

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.providers import Provider, infer_provider

from axon_zmq.errors import AxonError, ModelError, RequestError
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
    """

    def __init__(self, default: str | None, *, offline: bool = True) -> None:
        self.default = default
        self._offline = offline
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
            ModelError: As `named`.
        """
        if not self._offline and offline_models.is_offline(name):
            raise RequestError(
                "unknown_model",
                f"model {name[:64]!r} is an offline model, which clients of this daemon may not name: use another "
                "model, or set AXON_OFFLINE_MODELS=true (its default is false if AXON_AGENTS is set)",
            )
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
        except (UserError, ValueError, ImportError) as error:
            raise RequestError("unknown_model", f"model {name!r}: {_first_line(error)}") from error

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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
