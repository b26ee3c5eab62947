defmodule AxonCore.Codec do
  @moduledoc """
  Between Elixir terms, msgpack and frames.

  Atoms but `nil`, `true` and `false` become text, keyword lists maps, `Date`, `Time` and `NaiveDateTime` ISO 8601 text,
  other structs maps; `DateTime` stays a time. A binary is text: wrap bytes with `bytes/1`. What comes back has string
  keys, and bytes as `Msgpax.Bin`, so that messages can be sent back as they are.
  """

  alias AxonCore.Error

  @type frames :: [binary]

  @doc "Whether msgpack can be read and written: the error that names the missing package if not."
  @spec check() :: :ok | {:error, Error.t()}

  # `ensure_compiled` is `ensure_loaded?` that also waits for a module of this project, as the tests' double is one.
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

  @doc "Bytes, for images and the like."
  @spec bytes(binary) :: struct
  def bytes(data) when is_binary(data), do: %{__struct__: Msgpax.Bin, data: data}

  @doc """
  A map as msgpack.

  Raises `AxonCore.Error` (`:invalid_argument`) that names the place of what msgpack cannot hold.
  """
  @spec pack(map) :: binary
  def pack(map) when map_size(map) == 0, do: ""
  def pack(map), do: map |> plain() |> pack_plain()

  @doc "The same of a map that is plain already."
  @spec pack_plain(map) :: binary
  def pack_plain(map), do: to_msgpack(map)

  @doc "A map out of msgpack; an empty frame is an empty map."
  @spec unpack(binary) :: {:ok, map} | :error
  def unpack(""), do: {:ok, %{}}

  def unpack(packed) do
    case from_msgpack(packed) do
      {:ok, map} when is_map(map) -> {:ok, map}
      _other -> :error
    end
  end

  @doc "A message to the daemon; empty frames at its end are left out."
  @spec message(String.t(), binary, map, map) :: frames
  def message(kind, id, header \\ %{}, body \\ %{}), do: frames(kind, id, header, pack(body))

  @doc "The same with a body that is packed."
  @spec frames(String.t(), binary, map, binary) :: frames
  def frames(kind, id, header, packed) do
    case {pack(header), packed} do
      {"", ""} -> [kind, id]
      {header, ""} -> [kind, id, header]
      {header, body} -> [kind, id, header, body]
    end
  end

  @doc """
  Kind, id and body of a message from the daemon.

  Its last three frames count: chumak puts stale ones in front after a reconnect. One frame alone is an answer in one
  frame, as `frames: "single"` asks for.
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
  A term as msgpack can hold it.

  Raises `AxonCore.Error` (`:invalid_argument`) with the JSON pointer of what it cannot.
  """
  @spec plain(term) :: term
  def plain(term) do
    case to_plain(term) do
      {:ok, plain} -> plain
      {:error, error} -> raise error
    end
  end

  @doc "The same, with the error returned."
  @spec to_plain(term) :: {:ok, term} | {:error, Error.t()}
  def to_plain(term) do
    {:ok, plain(term, [])}
  catch
    # Thrown by `refuse/2`, out of any depth.
    {:refused, %Error{} = error} -> {:error, error}
  end

  defp plain(%{__struct__: Msgpax.Bin} = bytes, _path), do: bytes
  defp plain(%DateTime{} = time, _path), do: time
  defp plain(%struct{} = value, _path) when struct in [Date, Time, NaiveDateTime], do: struct.to_iso8601(value)
  defp plain(%_struct{} = value, path), do: value |> Map.from_struct() |> plain(path)
  defp plain(map, path) when is_map(map), do: Map.new(map, &pair(&1, path))
  defp plain([_ | tail], path) when not is_list(tail), do: refuse(path, "it is no proper list")
  defp plain([{key, _value} | _] = list, path) when is_atom(key), do: Map.new(list, &pair(&1, path))

  defp plain(list, path) when is_list(list) do
    list |> Enum.with_index() |> Enum.map(fn {item, index} -> plain(item, [index | path]) end)
  end

  defp plain(value, _path) when is_boolean(value) or is_nil(value) or is_float(value), do: value
  defp plain(atom, _path) when is_atom(atom), do: Atom.to_string(atom)
  defp plain(integer, _path) when integer in -0x8000000000000000..0xFFFFFFFFFFFFFFFF, do: integer

  defp plain(integer, path) when is_integer(integer),
    do: refuse(path, "#{integer} has more than 64 bits: send it as text")

  defp plain(text, path) when is_binary(text) do
    if String.valid?(text), do: text, else: refuse(path, "it is not UTF-8: wrap bytes in AxonCore.Codec.bytes/1")
  end

  defp plain(other, path), do: refuse(path, "#{inspect(other, limit: 5)} has no form in msgpack")

  @doc "A plain term with each `DateTime` as ISO 8601 text, which is all that JSON has for it."
  @spec times_as_text(term) :: term
  def times_as_text(%DateTime{} = time), do: DateTime.to_iso8601(time)
  def times_as_text(%_bytes{} = bytes), do: bytes
  def times_as_text(map) when is_map(map), do: Map.new(map, fn {key, value} -> {key, times_as_text(value)} end)
  def times_as_text(list) when is_list(list), do: Enum.map(list, &times_as_text/1)
  def times_as_text(scalar), do: scalar

  defp pair({key, value}, path) when is_atom(key) and not is_nil(key), do: pair({Atom.to_string(key), value}, path)
  defp pair({key, value}, path) when is_binary(key), do: {key, plain(value, [key | path])}
  defp pair({key, _value}, path), do: refuse(path, "the key #{inspect(key, limit: 5)} is neither text nor an atom")
  defp pair(other, path), do: refuse(path, "#{inspect(other, limit: 5)} is no key with a value")

  @spec refuse([String.t() | non_neg_integer], String.t()) :: no_return
  defp refuse(path, why) do
    throw({:refused, Error.new(:invalid_argument, "#{pointer(path)}: #{why}", %{"pointer" => pointer(path)})})
  end

  defp pointer(path), do: path |> Enum.reverse() |> Enum.map_join(&"/#{&1}")
end
