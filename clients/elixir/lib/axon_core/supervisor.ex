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

  The connection is `connection(MyApp.Axon)`, each agent's process `agent(MyApp.Axon, :support)`. Options are those of
  `AxonCore.Connection`, and

  | option | |
  |---|---|
  | `name` | an atom: the supervisor's own; the others are found by it |
  | `agents` | names, each with an `AxonCore.Agent`, the name of a registered one, or options of `AxonCore.AgentProcess`, with `agent:` |
  | `daemon` | options of `AxonCore.Daemon`, to start that too; the endpoint, where left out, is the one on which it serves |

  When the connection dies the agents are started anew with it, their conversations with them: `message_history` brings one
  back. A connection that merely breaks is no death, nor is the end of the daemon, which is started anew beside them.
  """

  use Supervisor

  alias AxonCore.{Agent, AgentProcess, Connection, Daemon, Error, Options}

  @doc false
  def child_spec(options) do
    name = Keyword.fetch!(options, :name)
    %{id: name, type: :supervisor, start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Starts them."
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(options), do: Supervisor.start_link(__MODULE__, options, name: Keyword.fetch!(options, :name))

  @doc "The name of the connection."
  @spec connection(atom) :: atom
  def connection(name), do: Module.concat(name, Connection)

  @doc "The name of an agent's process."
  @spec agent(atom, atom) :: atom
  def agent(name, agent), do: Module.concat([name, AgentProcess, Macro.camelize(Atom.to_string(agent))])

  @impl true
  def init(options) do
    :ok = Options.check(options, [:agents, :daemon | Connection.own_options()], "AxonCore.Supervisor")
    name = Keyword.fetch!(options, :name)
    {daemon, options} = Keyword.pop(options, :daemon)
    {agents, options} = Keyword.pop(options, :agents, [])
    :ok = Options.check(daemon || [], Daemon.own_options(), "a daemon")
    agents = Enum.map(agents, &child(&1, name))
    options = Keyword.put(options, :name, connection(name))

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

  defp child({key, options}, name) when is_atom(key) do
    own = [name: agent(name, key), connection: connection(name)]

    if Keyword.keyword?(options) and Keyword.has_key?(options, :agent),
      do: {AgentProcess, own ++ options},
      else: {AgentProcess, [agent: Agent.of(options)] ++ own}
  end

  defp child(other, _name) do
    raise Error.new(:invalid_argument, "#{inspect(other, limit: 5)} has no name: write `agents: [support: …]`")
  end
end
