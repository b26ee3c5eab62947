defmodule Msgpax do
  @moduledoc """
  Test double for msgpax, used if that package is missing: it packs terms in Erlang's external term format.

  Tests of packed messages need msgpax itself. Without it they are excluded.
  """

  def pack!(term, _options), do: :erlang.term_to_binary(term)

  def unpack(binary, _options) do
    {:ok, :erlang.binary_to_term(binary, [:safe])}
  rescue
    ArgumentError -> {:error, :no_term}
  end
end
