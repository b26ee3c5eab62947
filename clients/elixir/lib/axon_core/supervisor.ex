defmodule AxonCore.Supervisor do
  @moduledoc """
  Supervisor of a connection and its agents, and optionally of the daemon.

      {AxonCore.Supervisor,
       name: MyApp.Axon,
       agents: [
         support: AxonCore.Agent.new("support"),
         poet: AxonCore.Agent.new(model: "openai-chat:gpt-5-mini", instructions: "Rhyme.")
       ]}

  `connection/1` returns the name of the connection, such as `connection(MyApp.Axon)`, and `agent/2` the name of an
  agent's process, such as `agent(MyApp.Axon, :support)`.

  #{AxonCore.Options.docs(:supervisor)}

  If the process of the connection exits, the agents are restarted too and lose their conversations; the option
  `message_history` restores a conversation. A lost network connection or a restart of the daemon affects neither the
  connection's process nor the conversations.
  """

  use Supervisor

  alias AxonCore.{AgentProcess, Connection, Daemon, Options}

  @doc false
  def child_spec(options) do
    name = Options.validate!(options, :supervisor)[:name]
    %{id: name, type: :supervisor, start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Starts the supervisor and its children."
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(options) do
    with {:ok, checked} <- Options.validate(options, :supervisor),
         {:ok, agents} <- children(checked[:agents], checked[:name]) do
      # `options` and not `checked`, which contains defaults: the default of `endpoint` depends on `daemon`.
      Supervisor.start_link(__MODULE__, {options, agents}, name: checked[:name])
    end
  end

  @doc "Returns the registered name of the connection."
  @spec connection(atom) :: atom
  def connection(name), do: Module.concat(name, Connection)

  @doc "Returns the registered name of an agent's process."
  @spec agent(atom, atom) :: atom
  def agent(name, agent), do: Module.concat([name, AgentProcess, Macro.camelize(Atom.to_string(agent))])

  @impl true
  def init({options, agents}) do
    {daemon, options} = Keyword.pop(options, :daemon)
    {name, options} = Keyword.pop!(options, :name)
    options = options |> Keyword.delete(:agents) |> Keyword.put(:name, connection(name))

    # `rest_for_one`: the runs of an agent end with the connection, so the agents are restarted with it.
    if daemon,
      do: init_with_daemon(Keyword.put_new(daemon, :name, Module.concat(name, Daemon)), options, agents),
      else: Supervisor.init([{Connection, options} | agents], strategy: :rest_for_one)
  end

  # `one_for_one` with the clients under their own supervisor: a restart of the daemon must not restart the connection,
  # which resumes its runs instead.
  defp init_with_daemon(daemon, options, agents) do
    clients = %{
      id: Clients,
      type: :supervisor,
      start: {__MODULE__, :start_clients, [daemon[:name], options, agents]}
    }

    Supervisor.init([Supervisor.child_spec({Daemon, daemon}, id: Daemon), clients], strategy: :one_for_one)
  end

  @doc false
  @spec start_clients(GenServer.server(), keyword, list) :: Supervisor.on_start()
  def start_clients(daemon, options, agents) do
    options = Keyword.put_new_lazy(options, :endpoint, fn -> Daemon.endpoint(daemon) end)
    Supervisor.start_link([{Connection, options} | agents], strategy: :rest_for_one)
  end

  # The options of all agents are checked before any process is started.
  defp children(agents, name) do
    Enum.reduce_while(Enum.reverse(agents), {:ok, []}, fn {key, agent}, {:ok, children} ->
      options = [name: agent(name, key), connection: connection(name)] ++ process_options(agent)

      case Options.validate(options, :agent_process) do
        {:ok, _options} -> {:cont, {:ok, [{AgentProcess, options} | children]}}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  defp process_options(agent) do
    if Keyword.keyword?(agent) and Keyword.has_key?(agent, :agent), do: agent, else: [agent: agent]
  end
end
