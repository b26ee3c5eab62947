defmodule AxonCore.ToolSupervisor do
  @moduledoc false
  # The tasks of one connection's tools:
  #
  #     AxonCore.ToolSupervisors (DynamicSupervisor, in this application's tree)
  #     └── AxonCore.ToolSupervisor, one for each connection
  #         ├── Task.Supervisor
  #         └── AxonCore.ToolSupervisor.Owner, which monitors the connection
  #
  # A connection is started by its user's supervisor with its own pid, so it cannot be a sibling of its Task.Supervisor.
  # The owner's process ends when the connection has ended, however that ended; `auto_shutdown` (OTP 24) then shuts the
  # tasks down: each gets 5 s, then it is killed. A task never outlives its connection, and a connection that is started
  # again does not wait for the tasks of the earlier one.

  # Supervisor of Elixir 1.14 has no `auto_shutdown`.
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

  @doc "The child of this application's supervisor."
  @spec dynamic() :: Supervisor.child_spec() | {module, keyword}
  def dynamic, do: {DynamicSupervisor, name: @dynamic, strategy: :one_for_one}

  @doc "Starts the supervisor of the tools of the calling process, and returns it and its `Task.Supervisor`."
  @spec start() :: {:ok, pid, pid} | {:error, Error.t()}
  def start do
    if Process.whereis(@dynamic) do
      {:ok, supervisor} = DynamicSupervisor.start_child(@dynamic, child_spec(self()))
      [tasks] = for {Task.Supervisor, pid, _type, _modules} <- :supervisor.which_children(supervisor), do: pid
      {:ok, supervisor, tasks}
    else
      text = "the application :axon_core is not running; start it with Application.ensure_all_started(:axon_core)"
      {:error, Error.new(:invalid_argument, text)}
    end
  end

  @doc false
  @spec child_spec(pid) :: Supervisor.child_spec()
  def child_spec(owner) do
    # Temporary: when it has ended, so has the connection, or the connection ends with it.
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
