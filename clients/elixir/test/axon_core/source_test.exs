defmodule AxonCore.SourceTest do
  use ExUnit.Case, async: true

  @lib Path.expand("../../lib", __DIR__)
  @files Path.wildcard(Path.join(@lib, "**/*.ex"))

  # It calls functions of the application, which may fail in any way, in a process that several callers share.
  @may_catch_everything ["axon_core/user_code.ex"]

  test "only calls of the application's code catch all exceptions" do
    found = for file <- @files, clause <- handlers(file), catches_everything?(clause), do: Path.relative_to(file, @lib)
    assert found == @may_catch_everything
  end

  test "the check finds handlers that catch all exceptions" do
    for code <- [
          "try do x() rescue _ -> 1 end",
          "try do x() rescue error -> error end",
          "try do x() rescue error in _ -> error end",
          "try do x() rescue e in Exception -> e; error -> error end",
          "try do x() catch _, _ -> 1 end",
          "try do x() catch :error, reason -> reason end",
          "try do x() catch kind, {:a, 1} -> kind end",
          "try do x() catch thrown -> thrown end",
          "def f do x() rescue _fault -> 1 end"
        ] do
      assert Enum.any?(handlers_in(Code.string_to_quoted!(code)), &catches_everything?/1), code
    end

    for code <- [
          "try do x() rescue ArgumentError -> 1 end",
          "try do x() rescue error in [ArgumentError, KeyError] -> error end",
          "try do x() catch :exit, {reason, {GenServer, :call, _args}} -> reason end",
          "try do x() catch {:refused, error} -> error end",
          "def f, do: fn _ -> 1 end"
        ] do
      refute Enum.any?(handlers_in(Code.string_to_quoted!(code)), &catches_everything?/1), code
    end
  end

  test "messages between processes contain no closures" do
    for file <- @files, call <- calls(file), {_function, _meta, [_process, message | _rest]} = call do
      refute closure?(message), "#{file}: #{Macro.to_string(call)}"
    end
  end

  test "every task and supervisor is part of a supervision tree" do
    for file <- @files, source = File.read!(file) do
      refute source =~ "Task.Supervisor.start_link", file
      refute source =~ ~r/\bTask\.(async|start)\b/, file
    end
  end

  # --- helpers -------------------------------------------------------------------------------------

  defp handlers(file), do: file |> File.read!() |> Code.string_to_quoted!() |> handlers_in()

  defp handlers_in(ast) do
    for block <- Macro.prewalker(ast),
        {part, clauses} when part in [:rescue, :catch] and is_list(clauses) <- parts(block),
        {:->, _meta, [patterns, _body]} <- clauses,
        do: {part, patterns}
  end

  defp parts([{_key, _value} | _] = parts), do: parts
  defp parts(_other), do: []

  defp catches_everything?({:rescue, [{:in, _meta, [_error, exceptions]}]}), do: not named?(exceptions)
  defp catches_everything?({:rescue, [exceptions]}), do: not named?(exceptions)
  defp catches_everything?({:catch, [thrown]}), do: variable?(thrown)
  defp catches_everything?({:catch, [kind, reason]}), do: variable?(kind) or variable?(reason)

  defp named?({:__aliases__, _meta, [:Exception]}), do: false
  defp named?({:__aliases__, _meta, _names}), do: true
  defp named?(exceptions) when is_list(exceptions), do: Enum.all?(exceptions, &named?/1)
  defp named?(_variable), do: false

  defp variable?({name, _meta, context}), do: is_atom(name) and is_atom(context)
  defp variable?(_pattern), do: false

  defp calls(file) do
    for {{:., _, [{:__aliases__, _, [:GenServer]}, function]}, _, _} = call when function in [:call, :cast] <-
          file |> File.read!() |> Code.string_to_quoted!() |> Macro.prewalker(),
        do: call
  end

  defp closure?(message), do: Enum.any?(Macro.prewalker(message), &match?({kind, _, _} when kind in [:fn, :&], &1))
end
