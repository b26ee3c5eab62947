defmodule AxonCore.Supervisor do
  @moduledoc """
  A connection and its agents, under one roof.

      {AxonCore.Supervisor,
       name: MyApp.Axon,
       identity: "my-app-1",
       agents: [
         support: AxonCore.Agent.new("support"),
         poet: AxonCore.Agent.new(model: "openai-chat:gpt-5-mini", instructions: "Rhyme.")
       ]}

  The connection is `connection(MyApp.Axon)`, each agent's process `agent(MyApp.Axon, :support)`.

  #{AxonCore.Options.docs(:supervisor)}

  When the connection dies the agents are started anew with it, their conversations with them: `message_history` brings one
  back. A connection that merely breaks is no death, nor is the end of the daemon, which is started anew beside them.
  """

  use Supervisor

  alias AxonCore.{AgentProcess, Connection, Daemon, Options}

  @doc false
  def child_spec(options) do
    name = Options.validate!(options, :supervisor)[:name]
    %{id: name, type: :supervisor, start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Starts them."
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(options) do
    with {:ok, checked} <- Options.validate(options, :supervisor),
         {:ok, agents} <- children(checked[:agents], checked[:name]) do
      # As they were given: the default of `endpoint` depends on `daemon`.
      Supervisor.start_link(__MODULE__, {options, agents}, name: checked[:name])
    end
  end

  @doc "The name of the connection."
  @spec connection(atom) :: atom
  def connection(name), do: Module.concat(name, Connection)

  @doc "The name of an agent's process."
  @spec agent(atom, atom) :: atom
  def agent(name, agent), do: Module.concat([name, AgentProcess, Macro.camelize(Atom.to_string(agent))])

  @impl true
  def init({options, agents}) do
    {daemon, options} = Keyword.pop(options, :daemon)
    {name, options} = Keyword.pop!(options, :name)
    options = options |> Keyword.delete(:agents) |> Keyword.put(:name, connection(name))

    if daemon,
      do: beside(Keyword.put_new(daemon, :name, Module.concat(name, Daemon)), options, agents),
      else: Supervisor.init([{Connection, options} | agents], strategy: :rest_for_one)
  end

  defp beside(daemon, options, agents) do
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

  # The options of every agent are checked before anything is started.
  defp children(agents, name) do
    Enum.reduce_while(Enum.reverse(agents), {:ok, []}, fn {key, agent}, {:ok, children} ->
      options = [name: agent(name, key), connection: connection(name)] ++ own(agent)

      case Options.validate(options, :agent_process) do
        {:ok, _options} -> {:cont, {:ok, [{AgentProcess, options} | children]}}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  defp own(agent) do
    if Keyword.keyword?(agent) and Keyword.has_key?(agent, :agent), do: agent, else: [agent: agent]
  end
end
