defmodule AxonCore.UserCode do
  @moduledoc """
  The one place that catches everything: calls of the application's own functions in a process that others share.

  A connection serves many callers. A function that one of them gave, such as `cast`, or the `message/1` of an exception
  that a tool raised, may fail in any way, and must not end the runs of the others. Code of this package is never called
  through here: its bugs crash the process and are seen.
  """

  @doc "Calls a function of the application's."
  @spec call((... -> result), [term]) ::
          {:ok, result} | {:error, {:error | :exit | :throw, term, Exception.stacktrace()}}
        when result: term
  def call(function, args) do
    {:ok, apply(function, args)}
  catch
    kind, reason -> {:error, {kind, reason, __STACKTRACE__}}
  end
end
