defmodule Msgpax do
  @moduledoc """
  Where msgpax is not at hand, what needs some packing all the same is tested with Erlang's own. The bytes of messages are
  tested where it is: those tests are left out here, and counted.
  """

  def pack!(term, _options), do: :erlang.term_to_binary(term)

  def unpack(binary, _options) do
    {:ok, :erlang.binary_to_term(binary, [:safe])}
  rescue
    ArgumentError -> {:error, :no_term}
  end
end
