defmodule AxonCore.ToolSupervisor do
  @moduledoc false
  # The tasks of one connection's tools:
  #
  #     AxonCore.ToolSupervisors (DynamicSupervisor, in this application's tree)
  #     └── AxonCore.ToolSupervisor, one for each connection
  #         ├── Task.Supervisor
  #         └── AxonCore.ToolSupervisor.Owner, which monitors the connection
  #
  # The supervisor of the application starts the connection, so the connection cannot be a sibling of its
  # Task.Supervisor. The Owner exits when the connection has exited for any reason; `auto_shutdown` (OTP 24) then shuts
  # the tasks down. Each task gets 5 s and is then killed. The tasks therefore end with their connection, and a
  # restarted connection does not wait for the tasks of its predecessor.

  # Erlang's supervisor is used because the one of Elixir 1.14 has no `auto_shutdown`.
  @behaviour :supervisor

  alias AxonCore.Error

  defmodule Owner do
    @moduledoc false
    use GenServer, restart: :temporary

    @spec start_link(pid) :: GenServer.on_start()
    def start_link(owner), do: GenServer.start_link(__MODULE__, owner)

    @impl true
    def init(owner), do: {:ok, Process.monitor(owner)}

    @impl true
    def handle_info({:DOWN, monitor, :process, _owner, _reason}, monitor), do: {:stop, :normal, monitor}
  end

  @dynamic AxonCore.ToolSupervisors

  @doc "Returns the child spec of the dynamic supervisor in this application's tree."
  @spec dynamic() :: Supervisor.child_spec() | {module, keyword}
  def dynamic, do: {DynamicSupervisor, name: @dynamic, strategy: :one_for_one}

  @doc "Starts the tool supervisor of the calling process, and returns it and its `Task.Supervisor`."
  @spec start() :: {:ok, pid, pid} | {:error, Error.t()}
  def start do
    if Process.whereis(@dynamic) do
      {:ok, supervisor} = DynamicSupervisor.start_child(@dynamic, child_spec(self()))
      [tasks] = for {Task.Supervisor, pid, _type, _modules} <- :supervisor.which_children(supervisor), do: pid
      {:ok, supervisor, tasks}
    else
      text = "application :axon_core is not running; start it with Application.ensure_all_started(:axon_core)"
      {:error, Error.new(:invalid_argument, text)}
    end
  end

  @doc false
  @spec child_spec(pid) :: Supervisor.child_spec()
  def child_spec(owner) do
    # Temporary, because a restart is never needed. Normally this supervisor exits after its connection. If it exits
    # first, the connection exits too, and the restarted connection starts a new tool supervisor.
    %{id: __MODULE__, type: :supervisor, restart: :temporary, start: {__MODULE__, :start_link, [owner]}}
  end

  @doc false
  @spec start_link(pid) :: Supervisor.on_start()
  def start_link(owner), do: :supervisor.start_link(__MODULE__, owner)

  @impl true
  def init(owner) do
    flags = %{strategy: :one_for_all, intensity: 0, auto_shutdown: :any_significant}
    {:ok, {flags, Enum.map([Task.Supervisor, {Owner, owner}], &significant/1)}}
  end

  defp significant(child), do: child |> Supervisor.child_spec(restart: :temporary) |> Map.put(:significant, true)
end
