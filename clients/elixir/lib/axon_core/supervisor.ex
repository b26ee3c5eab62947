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
  | `agents` | names and `AxonCore.Agent`s; or names and options of `AxonCore.AgentProcess`, with `agent:` |
  | `daemon` | options of `AxonCore.Daemon`, to start that too; the endpoint is what its `AXON_FRONTEND` says |

  When the connection dies the agents are started anew with it, their conversations with them: `message_history` brings one
  back. A connection that merely breaks is no death, nor is the end of the daemon, which is started anew beside them.
  """

  use Supervisor

  alias AxonCore.{Agent, AgentProcess, Connection, Daemon}

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
    name = Keyword.fetch!(options, :name)
    {daemon, options} = Keyword.pop(options, :daemon)
    {agents, options} = Keyword.pop(options, :agents, [])

    options =
      if frontend = Daemon.env(daemon || [])["AXON_FRONTEND"], do: [endpoint: frontend] ++ options, else: options

    connection = {Connection, Keyword.put(options, :name, connection(name))}
    clients = [connection | Enum.map(agents, &child(&1, name))]
    if daemon, do: beside({Daemon, daemon}, clients), else: Supervisor.init(clients, strategy: :rest_for_one)
  end

  defp beside(daemon, clients) do
    clients = %{
      id: Clients,
      type: :supervisor,
      start: {Supervisor, :start_link, [clients, [strategy: :rest_for_one]]}
    }

    Supervisor.init([daemon, clients], strategy: :one_for_one)
  end

  defp child({key, %Agent{} = agent}, name), do: child({key, agent: agent}, name)

  defp child({key, options}, name) do
    {AgentProcess, [name: agent(name, key), connection: connection(name)] ++ options}
  end
end
