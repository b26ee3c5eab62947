defmodule AxonCore.Application do
  @moduledoc false
  # The application that uses this package starts connections in its own supervision tree. The tasks of their tools are
  # supervised here: see AxonCore.ToolSupervisor.

  use Application

  @impl true
  def start(_type, _args) do
    Supervisor.start_link([AxonCore.ToolSupervisor.dynamic()], strategy: :one_for_one, name: __MODULE__.Supervisor)
  end
end
