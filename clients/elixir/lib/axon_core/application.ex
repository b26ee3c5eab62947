defmodule AxonCore.Application do
  @moduledoc false
  # Connections are started by the application that uses this package, in its own supervision tree. What their tools need
  # is supervised here: see AxonCore.ToolSupervisor.

  use Application

  @impl true
  def start(_type, _args) do
    Supervisor.start_link([AxonCore.ToolSupervisor.dynamic()], strategy: :one_for_one, name: __MODULE__.Supervisor)
  end
end
