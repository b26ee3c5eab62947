defmodule AxonCore.Error do
  @moduledoc """
  Why a request failed: the daemon's `error` message as an exception.

  `type` is one of `types/0` as an atom, or the daemon's own text where this version does not know it: judge such a one
  by `retryable?`. Five are this package's own:

  | `type` | what happened |
  |---|---|
  | `:gap` | messages of the run were lost and are no longer kept; the run was cancelled |
  | `:no_answer` | nothing came within the request's own time and ten seconds; it was cancelled |
  | `:no_connection` | the `AxonCore.Connection` of an agent's process is not there, or died before it had the request |
  | `:unreadable` | the daemon's answer is nothing that this version understands, or does not fit the output: `details["result"]` has it |
  | `:invalid_argument` | what was to be sent cannot be, and was not |

  `details` is the daemon's, with string keys: `"partial"` has the text and messages so far, `"retry_after_ms"` when to
  try again, `"may_have_run"` whether an unknown run may have been started.
  """

  @enforce_keys [:type, :message]
  defexception [:type, :message, details: %{}, retryable?: false]

  @type t :: %__MODULE__{type: atom | String.t(), message: String.t(), details: map, retryable?: boolean}

  @types ~w(malformed_frames invalid_msgpack invalid_request unsupported_version unknown_kind unknown_agent unknown_model
            unknown_tool unknown_request too_large overloaded no_worker shutting_down deadline_exceeded cancelled
            worker_lost quarantined slow_consumer unauthorized tool_timeout tool_failed invalid_output
            usage_limit_exceeded content_filtered model_auth model_rate_limited model_unavailable model_rejected
            model_context_exceeded model_connection model_behavior internal)a
  @by_name Map.new(@types, &{Atom.to_string(&1), &1})

  @doc "The daemon's error types."
  @spec types() :: [atom]
  def types, do: @types

  @doc "The body of an `error` or a `refused` as an exception."
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

  @doc "An error of this package's own."
  @spec new(atom, String.t(), map) :: t
  def new(type, message, details \\ %{}) do
    %__MODULE__{type: type, message: message, details: Map.put_new(details, "by", "client")}
  end

  @doc "The error of something that needs a package which is not there; `dependency` is its line in `mix.exs`."
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
