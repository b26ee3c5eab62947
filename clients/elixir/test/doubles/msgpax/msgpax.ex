defmodule Msgpax do
  @moduledoc """
  What the package uses of msgpax, if that package is missing: Erlang's own format instead of msgpack.

  The tests of the bytes of messages need the package itself: without it they are excluded, and counted.
  """

  def pack!(term, _options), do: :erlang.term_to_binary(term)

  def unpack(binary, _options) do
    {:ok, :erlang.binary_to_term(binary, [:safe])}
  rescue
    ArgumentError -> {:error, :no_term}
  end
end
