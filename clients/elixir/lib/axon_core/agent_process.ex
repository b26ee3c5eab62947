defmodule AxonCore.AgentProcess do
  @moduledoc """
  An agent with a conversation.

      {AxonCore.AgentProcess, name: MyApp.Support, connection: MyApp.Axon, agent: AxonCore.Agent.new("support")}

  | option | |
  |---|---|
  | `agent` | an `AxonCore.Agent`, or the name of a registered one |
  | `connection` | the `AxonCore.Connection` |
  | `name` | as of any GenServer |
  | `history` | `true` (where left out): each run goes on from those before. `false`: each stands alone |
  | `message_history` | where the conversation begins: messages of an earlier one |

  With a history, runs follow one another: one that is started while another is under way waits for its end. Without, any
  number goes on at a time. What failed or was cancelled leaves the conversation as it was.

  Options of a run are those of the request (`message_history`, `tools`, `deps`, `model`, `model_settings`,
  `usage_limits`, `retries`, `output_schema`, `output_mode`, `deferred_tool_results`, `events`, `log`, `metadata`), of its
  header (`timeout_ms`, `max_attempts`, `credit`, `on_disconnect`, `traceparent`, `tracestate`, `ack`), and for
  `run_stream` without `each` `to`: who hears of it, the caller where left out.

  A run that ends with `deferred` is gone on with by `run(agent, nil, deferred_tool_results: %{approvals: …})`.
  """

  use GenServer

  alias AxonCore.{Agent, Connection, Error, Handle, Options, Result, SchemaUtils}

  @of_the_body ~w(message_history tools deferred_tool_results output_schema output_mode deps model model_settings
                  usage_limits retries events log metadata)a
  @own ~w(agent connection name history message_history)a

  @type option ::
          {:agent, Agent.t() | String.t()}
          | {:connection, GenServer.server()}
          | {:name, GenServer.name()}
          | {:history, boolean}
          | {:message_history, [map]}

  @doc "Starts an agent's process."
  @spec start_link([option]) :: GenServer.on_start()
  def start_link(options), do: GenServer.start_link(__MODULE__, options, Keyword.take(options, [:name]))

  @doc false
  def child_spec(options) do
    %{id: Keyword.get(options, :name, __MODULE__), start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Runs the agent and waits: pydantic-ai's `Agent.run`. The caller's death cancels it."
  @spec run(GenServer.server(), term, keyword) :: AxonCore.outcome()
  def run(agent, prompt, options \\ []), do: wait_for(agent, "run", prompt, options)

  @doc "The same as pydantic-ai's `Agent.run_sync`, in a thread of its own: for agents with blocking code."
  @spec run_sync(GenServer.server(), term, keyword) :: AxonCore.outcome()
  def run_sync(agent, prompt, options \\ []), do: wait_for(agent, "run_sync", prompt, options)

  @doc """
  Starts a streamed run. Its messages come to the caller, or to `to`: see `AxonCore`.

  With `each: function` it waits instead, calls the function with each event but the last, and returns as `run/3` does.
  """
  @spec run_stream(GenServer.server(), term, keyword) :: {:ok, Handle.t()} | {:error, Error.t()} | AxonCore.outcome()
  def run_stream(agent, prompt, options \\ []) do
    case Keyword.pop(options, :each) do
      {nil, options} -> start(agent, "run_stream", prompt, options)
      {each, options} -> options |> AxonCore.events(&start(agent, "run_stream", prompt, &1)) |> consume(each)
    end
  end

  @doc "A streamed run as a lazy stream, with credit on the wire: see `AxonCore.stream/4`."
  @spec stream(GenServer.server(), term, keyword) :: Enumerable.t()
  def stream(agent, prompt, options \\ []) do
    AxonCore.lazily(options, &start(agent, "run_stream", prompt, &1))
  end

  @doc "Calls one Python tool of the agent's, without a model. Options: `deps`, and a request's header."
  @spec call_tool(GenServer.server(), String.t(), map, keyword) :: AxonCore.outcome()
  def call_tool(agent, tool, args \\ %{}, options \\ []) do
    {connection, of} = GenServer.call(agent, :who)
    of = if of.registered, do: [agent: of.registered], else: []
    AxonCore.call_tool(connection, tool, args, of ++ options)
  end

  @doc "Asks a run to end; its own last message says how it did."
  @spec cancel(GenServer.server(), Handle.t()) :: :ok | {:error, :ended}
  def cancel(_agent, handle), do: Connection.cancel(handle)

  @doc "The conversation's messages, to be kept somewhere and given to `message_history` one day."
  @spec history(GenServer.server()) :: [map]
  def history(agent), do: GenServer.call(agent, :history)

  @doc "Begins the conversation anew, or from these messages."
  @spec reset(GenServer.server(), [map]) :: :ok
  def reset(agent, messages \\ []), do: GenServer.call(agent, {:reset, messages})

  @doc false
  @spec start_run(GenServer.server(), String.t(), Agent.t() | String.t(), term, keyword, pid | nil) ::
          {:ok, Handle.t()} | {:error, Error.t()}
  def start_run(connection, kind, agent, prompt, options, observer \\ nil) do
    :ok = Options.check(options, @of_the_body ++ Connection.options(), "a run")
    agent = Agent.of(agent)
    {of_the_body, options} = Keyword.split(options, @of_the_body)
    {body, functions} = Agent.request(agent, prompt, Map.new(of_the_body))
    cast = if agent.output != nil and of_the_body[:output_schema] == nil, do: &SchemaUtils.cast(&1, agent.output)
    Connection.request(connection, kind, body, [functions: functions, cast: cast, observer: observer] ++ options)
  rescue
    error in Error -> {:error, error}
  end

  defp wait_for(agent, kind, prompt, options) do
    AxonCore.wait_for(options, &start(agent, kind, prompt, &1))
  end

  defp start(agent, kind, prompt, options) do
    GenServer.call(agent, {:start, kind, prompt, Keyword.put_new(options, :to, self())}, :infinity)
  end

  defp consume(events, each) do
    Enum.reduce(events, nil, fn
      {:ended, outcome}, _last -> outcome
      event, _last -> each.(event)
    end)
  end

  # --- the process ---------------------------------------------------------------------------------

  @impl true
  def init(options) do
    :ok = Options.check(options, @own, "an agent's process")
    agent = options |> Keyword.fetch!(:agent) |> Agent.of()
    history = if Keyword.get(options, :history, true), do: Keyword.get(options, :message_history, []), else: :off
    connection = Keyword.fetch!(options, :connection)
    {:ok, %{agent: agent, connection: connection, history: history, running: nil, waiting: :queue.new()}}
  rescue
    error in Error -> {:stop, error}
  end

  @impl true
  def handle_call({:start, kind, prompt, options}, from, %{running: nil} = state) do
    {:noreply, begin(state, from, kind, prompt, options)}
  end

  def handle_call({:start, kind, prompt, options}, from, state) do
    {:noreply, %{state | waiting: :queue.in({from, kind, prompt, options}, state.waiting)}}
  end

  def handle_call(:who, _from, state), do: {:reply, {state.connection, state.agent}, state}
  def handle_call(:history, _from, %{history: :off} = state), do: {:reply, [], state}
  def handle_call(:history, _from, state), do: {:reply, state.history, state}
  def handle_call({:reset, _messages}, _from, %{history: :off} = state), do: {:reply, :ok, state}

  def handle_call({:reset, messages}, _from, %{running: {ref, _before, monitors}} = state) do
    {:reply, :ok, %{state | history: messages, running: {ref, :of_no_interest, monitors}}}
  end

  def handle_call({:reset, messages}, _from, state), do: {:reply, :ok, %{state | history: messages}}

  @impl true
  def handle_info({:axon_ended, ref, event}, %{running: {ref, before, _monitors}} = state) do
    {:noreply, state |> over() |> grown(before, event) |> next()}
  end

  # The connection has died, and what it ran with it; or who asked, and it is being cancelled.
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{running: {_ref, _before, monitors}} = state) do
    {:noreply, if(monitor in monitors, do: state |> over() |> next(), else: state)}
  end

  def handle_info(_late, state), do: {:noreply, state}

  defp monitors(handle), do: Enum.map([handle.connection, handle.to], &Process.monitor/1)

  defp over(%{running: {_ref, _before, monitors}} = state) do
    Enum.each(monitors, &Process.demonitor(&1, [:flush]))
    %{state | running: nil}
  end

  defp begin(%{history: :off} = state, from, kind, prompt, options) do
    GenServer.reply(from, try_to_start(state, kind, prompt, options, nil))
    state
  end

  defp begin(state, from, kind, prompt, options) do
    options = Keyword.put(options, :message_history, options[:message_history] || state.history)
    started = try_to_start(state, kind, prompt, options, self())
    GenServer.reply(from, started)

    case started do
      {:ok, handle} -> %{state | running: {handle.ref, options[:message_history], monitors(handle)}}
      {:error, _error} -> next(state)
    end
  end

  defp try_to_start(state, kind, prompt, options, observer) do
    start_run(state.connection, kind, state.agent, prompt, options, observer)
  catch
    :exit, {reason, _call} ->
      text = "there is no connection #{inspect(state.connection)}, or it has just died: #{inspect(reason, limit: 5)}"
      {:error, Error.new(:no_connection, text)}

    :error, fault ->
      {:error, Error.new(:invalid_argument, Exception.message(Exception.normalize(:error, fault)))}
  end

  defp next(state) do
    case :queue.out(state.waiting) do
      {{:value, {from, kind, prompt, options}}, waiting} ->
        begin(%{state | waiting: waiting}, from, kind, prompt, options)

      {:empty, _waiting} ->
        state
    end
  end

  defp grown(state, before, {:complete, %Result{messages: messages}}) when is_list(before),
    do: %{state | history: before ++ messages}

  defp grown(state, _before, _event), do: state
end
