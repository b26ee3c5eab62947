defmodule AxonCore.UserCode do
  @moduledoc """
  Calls to functions of the application within a process that several callers share, with all exceptions caught.

  A connection serves many callers. A caller's function, such as `cast`, or the `message/1` of an exception that a tool
  raised, may fail in any way. Such a failure must not end the runs of other callers. Code of this package is never
  called through this module, so that its bugs crash the process and become visible.
  """

  @doc "Calls a function of the application, and returns its result or the kind, reason and stacktrace of its failure."
  @spec call((... -> result), [term]) ::
          {:ok, result} | {:error, {:error | :exit | :throw, term, Exception.stacktrace()}}
        when result: term
  def call(function, args) do
    {:ok, apply(function, args)}
  catch
    kind, reason -> {:error, {kind, reason, __STACKTRACE__}}
  end
end
