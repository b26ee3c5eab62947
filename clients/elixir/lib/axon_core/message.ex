defmodule AxonCore.Message do
  @moduledoc """
  Decoded message from the daemon.

  Messages are decoded once, when they are received. Only this module expects malformed input: `decode/1` returns
  `{:ok, message}` or `{:error, malformed}`. `AxonCore.Session` and `AxonCore.Run` receive decoded messages only, so an
  exception in them is a bug and is never rescued.

  The event of a kind that this version does not know is `:unknown`. The protocol may add kinds, which clients ignore.
  """

  alias AxonCore.{Chunk, Codec, Error, Result}

  @enforce_keys [:id, :event]
  defstruct [:id, :seq, :event]

  @type event ::
          {:alive, %{boot: term, open: term}}
          | {:pong, %{boot: term, shared?: boolean, max_body: pos_integer | nil, body: map}}
          | {:catalog, map}
          | {:accepted, boolean}
          | {:chunk, Chunk.t()}
          | {:log, map}
          | {:tool_call, %{call_id: String.t(), name: String.t(), args: map}}
          | {:tool_cancelled, String.t()}
          | {:resumed, %{from: pos_integer | nil, gap?: boolean, open_calls: [String.t()], last: integer | nil}}
          | {:refused, %{of: String.t() | nil, call_id: String.t() | nil, error: Error.t()}}
          | {:complete, Result.t()}
          | {:error, Error.t()}
          | :unknown

  @typedoc "`seq` is the number of the message within its run, or `nil` if it has none."
  @type t :: %__MODULE__{id: binary, seq: pos_integer | nil, event: event}

  @typedoc """
  - `part`: the malformed part of the message: the `:body`, or the `:frames` if not even the kind could be read
  - `id`: the id of the request, if known
  """
  @type malformed :: %{part: :frames | :body, id: binary | nil, reason: String.t()}

  @doc "Decodes the frames of a message."
  @spec decode(Codec.frames()) :: {:ok, t} | {:error, malformed}
  def decode(frames) do
    case Codec.parse(frames) do
      {:ok, {kind, id, body}} -> decode(kind, id, body)
      :error -> {:error, %{part: :frames, id: Enum.at(frames, -2), reason: "malformed frames"}}
    end
  end

  @doc "Decodes the body of a message whose kind and id are known."
  @spec decode(String.t(), binary, map) :: {:ok, t} | {:error, malformed}
  # Nearly all messages are chunks, and one match is cheaper than checking each field.
  def decode("chunk", id, %{"seq" => seq, "type" => type} = body)
      when is_integer(seq) and seq > 0 and is_binary(type) do
    {:ok, %__MODULE__{id: id, seq: seq, event: {:chunk, Chunk.from_wire(body)}}}
  end

  def decode(kind, id, body) do
    with {:ok, event} <- event(kind, body),
         {:ok, seq} <- seq(event, body) do
      {:ok, %__MODULE__{id: id, seq: seq, event: event}}
    else
      {:error, field, expected} ->
        reason = "malformed `#{kind}` message: expected #{field} to be #{expected}, got: #{shown(body[field])}"
        {:error, %{part: :body, id: id, reason: reason}}
    end
  end

  defp shown(value), do: inspect(value, limit: 5, printable_limit: 60)

  # A tool call always has a number. Other messages have one if a worker sent them.
  defp seq({:tool_call, _call}, body), do: field(body, "seq", :seq)
  defp seq(:unknown, %{"seq" => seq}) when is_integer(seq) and seq > 0, do: {:ok, seq}
  defp seq(:unknown, _body), do: {:ok, nil}
  defp seq(_event, body), do: optional(body, "seq", :seq)

  defp event("alive", body), do: {:ok, {:alive, %{boot: body["boot"], open: body["open"]}}}
  defp event("catalog", body), do: {:ok, {:catalog, body}}
  defp event("accepted", body), do: {:ok, {:accepted, body["duplicate"] == true}}
  defp event("log", body), do: {:ok, {:log, body}}

  defp event("pong", body) do
    shared? = body["shared"] == true
    {:ok, {:pong, %{boot: body["boot"], shared?: shared?, max_body: max_body(body), body: body}}}
  end

  # `decode/3` has matched all well-formed chunks already.
  defp event("chunk", body) do
    with {:ok, _seq} <- field(body, "seq", :seq), do: {:error, "type", expected(:text)}
  end

  defp event("tool_call", body) do
    with {:ok, id} <- field(body, "call_id", :text),
         {:ok, name} <- field(body, "name", :text),
         {:ok, args} <- field(body, "args", :map) do
      {:ok, {:tool_call, %{call_id: id, name: name, args: args}}}
    end
  end

  defp event("tool_cancelled", body) do
    with {:ok, id} <- field(body, "call_id", :text), do: {:ok, {:tool_cancelled, id}}
  end

  defp event("resumed", body) do
    gap? = body["gap"] == true

    with {:ok, from} <- if(gap?, do: field(body, "from", :seq), else: optional(body, "from", :seq)),
         {:ok, calls} <- optional(body, "open_calls", :calls),
         {:ok, last} <- optional(body, "last", :integer) do
      {:ok,
       {:resumed, %{from: from, gap?: gap?, open_calls: for(call <- calls || [], do: call["call_id"]), last: last}}}
    end
  end

  defp event("refused", body) do
    with {:ok, of} <- optional(body, "of", :text),
         {:ok, call_id} <- optional(body, "call_id", :text),
         {:ok, error} <- error(body) do
      {:ok, {:refused, %{of: of, call_id: call_id, error: error}}}
    end
  end

  defp event("complete", body) do
    with {:ok, _usage} <- optional(body, "usage", :map),
         {:ok, _messages} <- optional(body, "messages", :maps),
         {:ok, _deferred} <- optional(body, "deferred", :map) do
      {:ok, {:complete, Result.from_wire(body)}}
    end
  end

  defp event("error", body), do: with({:ok, error} <- error(body), do: {:ok, {:error, error}})
  defp event(_unknown, _body), do: {:ok, :unknown}

  defp error(body) do
    with {:ok, _type} <- optional(body, "error_type", :text),
         {:ok, _message} <- optional(body, "message", :text),
         {:ok, details} <- optional(body, "details", :map),
         {:ok, _within} <- optional(details || %{}, "never_ran_within_ms", :integer) do
      {:ok, Error.from_wire(body)}
    end
  end

  # An unreadable limit is ignored and not an error: the application may still be interested in the rest of the `pong`.
  defp max_body(%{"limits" => %{"max_body" => most}}) when is_integer(most) and most > 0, do: most
  defp max_body(_pong), do: nil

  # --- fields --------------------------------------------------------------------------------------

  defp optional(body, name, type) do
    if body[name] == nil, do: {:ok, nil}, else: field(body, name, type)
  end

  defp field(body, name, type) do
    value = body[name]
    if valid?(type, value), do: {:ok, value}, else: {:error, name, expected(type)}
  end

  defp valid?(:seq, value), do: is_integer(value) and value > 0
  defp valid?(:integer, value), do: is_integer(value)
  # Msgpax does not check that text is UTF-8.
  defp valid?(:text, value), do: is_binary(value) and String.valid?(value)
  defp valid?(:map, value), do: is_map(value) and not is_struct(value)
  defp valid?(:maps, value), do: is_list(value) and Enum.all?(value, &valid?(:map, &1))
  defp valid?(:calls, value), do: valid?(:maps, value) and Enum.all?(value, &valid?(:text, &1["call_id"]))

  defp expected(:seq), do: "an integer from 1"
  defp expected(:integer), do: "an integer"
  defp expected(:text), do: "text in UTF-8"
  defp expected(:map), do: "a map"
  defp expected(:maps), do: "a list of maps"
  defp expected(:calls), do: "a list of maps, each with a `call_id`"
end
