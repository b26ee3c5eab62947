defmodule AxonCore.CreditTest do
  use ExUnit.Case, async: true
  alias AxonCore.Credit

  # For random sequences of chunks, calls and acknowledgements.
  test "unread chunks never exceed the window, and there is credit when all are read" do
    for window <- [1, 2, 3, 4, 7, 64], seed <- 1..100 do
      :rand.seed(:exsss, {window, seed, 1})
      state = Enum.reduce(1..300, {Credit.new(window), 0, []}, fn _, state -> step(:rand.uniform(3), state, window) end)
      {credit, last, unread} = state
      credit = Enum.reduce(unread, credit, &took/2)
      assert credit.granted > last, "no credit: window #{window}, seed #{seed}"
    end
  end

  defp step(1, {%{granted: granted} = credit, last, unread}, window) when last < granted do
    assert length(unread) < window
    {credit, last + 1, unread ++ [last + 1]}
  end

  defp step(2, {credit, last, unread}, _window) do
    {_upto, credit} = credit |> Credit.free(last + 1) |> Credit.grant()
    {credit, last + 1, unread}
  end

  defp step(3, {credit, last, [first | unread]}, _window), do: {took(first, credit), last, unread}
  defp step(_other, state, _window), do: state

  defp took(seq, credit), do: credit |> Credit.took(seq) |> Credit.grant() |> elem(1)
end
