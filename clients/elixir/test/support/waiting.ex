defmodule AxonCore.Waiting do
  @moduledoc "For what comes about by itself, sooner or later."

  @doc "Whether it becomes true within about 20 seconds."
  def eventually(true?, tries \\ 800) do
    cond do
      true?.() ->
        true

      tries == 0 ->
        false

      true ->
        Process.sleep(25)
        eventually(true?, tries - 1)
    end
  end
end
