defmodule AxonCore.Codec do
  @moduledoc """
  Conversion between Elixir terms, msgpack and the frames of messages.

  | term | msgpack |
  |---|---|
  | binary | string; wrap bytes with `bytes/1` |
  | `nil`, `true`, `false` | nil or boolean |
  | other atom | string |
  | map, keyword list, struct | map |
  | `DateTime` | timestamp |
  | `Date`, `Time`, `NaiveDateTime` | string in ISO 8601 |

  Decoded maps have string keys, and bytes are `Msgpax.Bin`. Received messages can therefore be sent back unchanged.
  """

  alias AxonCore.Error

  @type frames :: [binary]

  @doc "Returns `:ok` if the package msgpax is available, and otherwise an error that says how to add it."
  @spec check() :: :ok | {:error, Error.t()}

  # `ensure_compiled` rather than `ensure_loaded?`: it waits for modules of this project, such as the test double.
  if match?({:module, _msgpax}, Code.ensure_compiled(Msgpax)) do
    def check, do: :ok
    defp to_msgpack(term), do: Msgpax.pack!(term, iodata: false)
    defp from_msgpack(binary), do: Msgpax.unpack(binary, binary: true)
  else
    def check, do: {:error, missing()}
    defp to_msgpack(_term), do: raise(missing())
    defp from_msgpack(_binary), do: raise(missing())
    defp missing, do: Error.missing_package("AxonCore.Codec", ~s({:msgpax, "~> 2.4"}))
  end

  @doc "Wraps bytes, such as an image, so that they are packed as msgpack binary and not as text."
  @spec bytes(binary) :: struct
  def bytes(data) when is_binary(data), do: %{__struct__: Msgpax.Bin, data: data}

  @doc """
  Packs a map as msgpack; an empty map becomes an empty frame.

  Raises `AxonCore.Error` (`:invalid_argument`) with the JSON pointer of a value that msgpack cannot represent.
  """
  @spec pack(map) :: binary
  def pack(map) when map_size(map) == 0, do: ""
  def pack(map), do: map |> plain() |> pack_plain()

  @doc "Packs a map that `plain/1` has converted already."
  @spec pack_plain(map) :: binary
  def pack_plain(map), do: to_msgpack(map)

  @doc "Unpacks a msgpack map; an empty frame is an empty map."
  @spec unpack(binary) :: {:ok, map} | :error
  def unpack(""), do: {:ok, %{}}

  def unpack(packed) do
    case from_msgpack(packed) do
      {:ok, map} when is_map(map) -> {:ok, map}
      _other -> :error
    end
  end

  @doc "Builds the frames of a message to the daemon, without empty frames at the end."
  @spec message(String.t(), binary, map, map) :: frames
  def message(kind, id, header \\ %{}, body \\ %{}), do: frames(kind, id, header, pack(body))

  @doc "Builds the frames of a message whose body is packed already."
  @spec frames(String.t(), binary, map, binary) :: frames
  def frames(kind, id, header, packed) do
    case {pack(header), packed} do
      {"", ""} -> [kind, id]
      {header, ""} -> [kind, id, header]
      {header, body} -> [kind, id, header, body]
    end
  end

  @doc """
  Returns kind, id and body of a message from the daemon.

  Only the last three frames are read, because chumak may put frames of an earlier, interrupted message in front of them
  after a reconnect. A single frame is a message in the format of `frames: "single"`.
  """
  @spec parse(frames) :: {:ok, {String.t(), binary, map}} | :error
  def parse([single]) do
    case from_msgpack(single) do
      {:ok, [kind, %{data: id}, body]} when is_binary(kind) and is_map(body) -> {:ok, {kind, id, body}}
      _other -> :error
    end
  end

  def parse(frames) do
    with [kind, id, packed] <- Enum.take(frames, -3), {:ok, body} <- unpack(packed) do
      {:ok, {kind, id, body}}
    else
      _other -> :error
    end
  end

  @doc """
  Converts a term to one that msgpack can represent.

  Raises `AxonCore.Error` (`:invalid_argument`) with the JSON pointer of a value that has no such form.
  """
  @spec plain(term) :: term
  def plain(term) do
    case to_plain(term) do
      {:ok, plain} -> plain
      {:error, error} -> raise error
    end
  end

  @doc "Converts a term as `plain/1` does, but returns the error instead of raising it."
  @spec to_plain(term) :: {:ok, term} | {:error, Error.t()}
  def to_plain(term) do
    {:ok, plain(term, [])}
  catch
    # `refuse/2` throws from any depth of the recursion.
    {:refused, %Error{} = error} -> {:error, error}
  end

  defp plain(%{__struct__: Msgpax.Bin} = bytes, _path), do: bytes
  defp plain(%DateTime{} = time, _path), do: time
  defp plain(%struct{} = value, _path) when struct in [Date, Time, NaiveDateTime], do: struct.to_iso8601(value)
  defp plain(%_struct{} = value, path), do: value |> Map.from_struct() |> plain(path)
  defp plain(map, path) when is_map(map), do: Map.new(map, &pair(&1, path))
  defp plain([_ | tail], path) when not is_list(tail), do: refuse(path, "expected a proper list")
  defp plain([{key, _value} | _] = list, path) when is_atom(key), do: Map.new(list, &pair(&1, path))

  defp plain(list, path) when is_list(list) do
    list |> Enum.with_index() |> Enum.map(fn {item, index} -> plain(item, [index | path]) end)
  end

  defp plain(value, _path) when is_boolean(value) or is_nil(value) or is_float(value), do: value
  defp plain(atom, _path) when is_atom(atom), do: Atom.to_string(atom)
  defp plain(integer, _path) when integer in -0x8000000000000000..0xFFFFFFFFFFFFFFFF, do: integer

  defp plain(integer, path) when is_integer(integer),
    do: refuse(path, "integer #{integer} does not fit in 64 bits; send it as text")

  defp plain(text, path) when is_binary(text) do
    if String.valid?(text), do: text, else: refuse(path, "text is not UTF-8; wrap bytes in AxonCore.Codec.bytes/1")
  end

  defp plain(other, path), do: refuse(path, "msgpack cannot represent #{inspect(other, limit: 5)}")

  @doc "Replaces each `DateTime` in a plain term with ISO 8601 text, because JSON has no type for times."
  @spec times_as_text(term) :: term
  def times_as_text(%DateTime{} = time), do: DateTime.to_iso8601(time)
  def times_as_text(%_bytes{} = bytes), do: bytes
  def times_as_text(map) when is_map(map), do: Map.new(map, fn {key, value} -> {key, times_as_text(value)} end)
  def times_as_text(list) when is_list(list), do: Enum.map(list, &times_as_text/1)
  def times_as_text(scalar), do: scalar

  defp pair({key, value}, path) when is_atom(key) and not is_nil(key), do: pair({Atom.to_string(key), value}, path)
  defp pair({key, value}, path) when is_binary(key), do: {key, plain(value, [key | path])}
  defp pair({key, _value}, path), do: refuse(path, "invalid key #{inspect(key, limit: 5)}: expected text or an atom")
  defp pair(other, path), do: refuse(path, "invalid entry #{inspect(other, limit: 5)}: expected a key and a value")

  @spec refuse([String.t() | non_neg_integer], String.t()) :: no_return
  defp refuse(path, why) do
    place = if path == [], do: "value", else: "value at #{pointer(path)}"
    throw({:refused, Error.new(:invalid_argument, "invalid #{place}: #{why}", %{"pointer" => pointer(path)})})
  end

  defp pointer(path), do: path |> Enum.reverse() |> Enum.map_join(&"/#{&1}")
end
