defmodule AxonCore.CallsTest do
  use ExUnit.Case, async: true
  alias AxonCore.Calls

  defp taken(ids), do: Enum.reduce(ids, %Calls{}, fn {id, seq}, calls -> calls |> Calls.take(id, seq) |> elem(1) end)

  test "a call is executed once" do
    assert {true, calls} = Calls.take(%Calls{}, "a", 1)
    assert {false, _calls} = Calls.take(calls, "a", 1)
  end

  test "rule 7: a replayed call is executed only if it is listed as open" do
    {[], calls} = Calls.resumed(%Calls{}, ["open"], 5)
    assert {false, calls} = Calls.take(calls, "over", 3)
    assert {true, calls} = Calls.take(calls, "open", 4)
    assert {true, _calls} = Calls.take(calls, "new", 6)
  end

  test "rule 7: a lost answer is sent again, and one that has arrived is not" do
    calls = taken([{"a", 1}, {"b", 2}, {"c", 3}]) |> Calls.answered("a", "A") |> Calls.answered("b", "B")
    assert {[{"b", "B"}], calls} = Calls.resumed(calls, ["b", "c"], 3)
    assert {[{"b", "B"}], _calls} = Calls.resumed(calls, ["b"], 3)
  end

  test "the answer to a cancelled call is not sent" do
    calls = taken([{"a", 1}])
    assert {true, calls} = Calls.cancel(calls, "a")
    assert {false, calls} = Calls.cancel(calls, "a")
    assert {[], _calls} = Calls.resumed(Calls.answered(calls, "a", "A"), ["a"], 1)
  end

  test "a refused answer is forgotten, and the call may be answered again" do
    calls = taken([{"a", 1}]) |> Calls.answered("a", "wrong") |> Calls.refused("a")
    assert Calls.open?(calls, "a")
    assert {[], calls} = Calls.resumed(calls, ["a"], 1)
    assert {[{"a", "right"}], _calls} = calls |> Calls.answered("a", "right") |> Calls.resumed(["a"], 1)
  end

  test "the size of kept answers is bounded, and a dropped answer is nil" do
    big = String.duplicate("x", 5 * 1024 * 1024)
    calls = taken([{"a", 1}, {"b", 2}]) |> Calls.answered("a", big) |> Calls.answered("b", big)
    assert {[{"a", nil}, {"b", ^big}], _calls} = Calls.resumed(calls, ["a", "b"], 2)
    refute inspect(calls) =~ "xxx"
  end
end
