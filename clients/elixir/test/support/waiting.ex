defmodule AxonCore.Waiting do
  @moduledoc "Waiting for a condition that other processes bring about."

  @doc "Returns whether a condition becomes true within about 20 seconds."
  def eventually(condition, tries \\ 800) do
    cond do
      condition.() ->
        true

      tries == 0 ->
        false

      true ->
        Process.sleep(25)
        eventually(condition, tries - 1)
    end
  end
end
