defmodule AxonCore.Error do
  @moduledoc """
  Exception for a failed request: the daemon's `error` message, or an error that this package detected.

  `type` is one of `types/0`, an atom. If a newer daemon sends a type that this version does not know, `type` is a
  string; use `retryable?` to decide how to handle it. This package adds five types:

  | `type` | meaning |
  |---|---|
  | `:gap` | messages of the run were lost and the daemon no longer keeps them; the run was cancelled |
  | `:no_answer` | no last message arrived within the run's `timeout_ms` and ten seconds more; the run was cancelled |
  | `:no_connection` | the `AxonCore.Connection` of an agent's process is not running, or exited before it had received the request |
  | `:unreadable` | a message of the daemon was malformed, or the result does not fit the agent's `output`; the result is in `details["result"]` |
  | `:invalid_argument` | the request is invalid and was not sent |

  `details` has string keys. Frequent ones are `"partial"` (text and messages of the run up to its end),
  `"retry_after_ms"`, and `"may_have_run"` (whether an unknown run may have been started). See also the
  [list of all errors](https://github.com/axon-zmq/axon_zmq/blob/main/docs/errors.md).
  """

  @enforce_keys [:type, :message]
  defexception [:type, :message, details: %{}, retryable?: false]

  @type t :: %__MODULE__{type: atom | String.t(), message: String.t(), details: map, retryable?: boolean}

  @types ~w(malformed_frames invalid_msgpack invalid_request unsupported_version unknown_kind unknown_agent unknown_model
            unknown_tool unknown_request too_large overloaded no_worker shutting_down deadline_exceeded cancelled
            worker_lost quarantined slow_consumer unauthorized tool_timeout tool_failed invalid_output
            usage_limit_exceeded content_filtered model_auth model_rate_limited model_unavailable model_rejected
            model_context_exceeded model_connection model_behavior out_of_memory internal)a
  @by_name Map.new(@types, &{Atom.to_string(&1), &1})

  @doc "Returns the error types of the daemon."
  @spec types() :: [atom]
  def types, do: @types

  @doc "Builds an exception from the body of an `error` or `refused` message."
  @spec from_wire(map) :: t
  def from_wire(body) do
    type = body["error_type"] || "internal"

    %__MODULE__{
      type: Map.get(@by_name, type, type),
      message: body["message"] || "",
      details: body["details"] || %{},
      retryable?: body["retryable"] == true
    }
  end

  @doc "Builds an error that this package detected; its `details` have `\"by\" => \"client\"`."
  @spec new(atom, String.t(), map) :: t
  def new(type, message, details \\ %{}) do
    %__MODULE__{type: type, message: message, details: Map.put_new(details, "by", "client")}
  end

  @doc "Builds the error about a missing package; `dependency` is the entry to add to `mix.exs`."
  @spec missing_package(String.t(), String.t()) :: t
  def missing_package(what, dependency) do
    text =
      "#{what} needs a package that is missing: add #{dependency} to the dependencies in mix.exs, " <>
        "then run `mix deps.get` and `mix deps.compile axon_core --force`"

    new(:invalid_argument, text)
  end

  @impl true
  def message(%__MODULE__{type: type, message: message}), do: "#{type}: #{message}"
end
