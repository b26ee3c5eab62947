defmodule AxonCore.AgentProcess do
  @moduledoc """
  Process that runs one agent and keeps its conversation.

      {AxonCore.AgentProcess, name: MyApp.Support, connection: MyApp.Axon, agent: AxonCore.Agent.new("support")}

  #{AxonCore.Options.docs(:agent_process)}

  With `history: true`, runs execute one after the other, in the order in which they were started. With
  `history: false`, any number of runs execute at the same time. A run that fails or is cancelled does not change the
  conversation.

  ## Options of a run

  #{AxonCore.Options.docs(:agent_run_stream)}

  Only `run_stream/3` accepts `to` and `each`, and only one of them at a time.

  To continue a run that ended with `deferred`, call `run(agent, nil, deferred_tool_results: %{approvals: …})`.
  """

  use GenServer

  alias AxonCore.{Agent, Connection, Error, Handle, Options, Result, ToolUtils}

  @body_keys Options.body()

  @type option ::
          {:agent, Agent.t() | String.t()}
          | {:connection, GenServer.server()}
          | {:name, GenServer.name()}
          | {:history, boolean}
          | {:message_history, [map]}

  @doc "Starts the process of an agent."
  @spec start_link([option]) :: GenServer.on_start()
  def start_link(options) do
    with {:ok, options} <- Options.validate(options, :agent_process) do
      GenServer.start_link(__MODULE__, options, Keyword.take(options, [:name]))
    end
  end

  @doc false
  def child_spec(options) do
    %{id: Keyword.get(options, :name, __MODULE__), start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Runs the agent and waits for the result, as `Agent.run` does. If the caller exits, the run is cancelled."
  @spec run(GenServer.server(), term, keyword) :: AxonCore.outcome()
  def run(agent, prompt, options \\ []), do: wait_for(agent, "run", prompt, options)

  @doc "Runs the agent as `run/3` does, but in a separate thread of the worker: for agents with blocking code."
  @spec run_sync(GenServer.server(), term, keyword) :: AxonCore.outcome()
  def run_sync(agent, prompt, options \\ []), do: wait_for(agent, "run_sync", prompt, options)

  @doc """
  Starts a streamed run. Its messages are sent to the caller, or to the process `to`: see `AxonCore`.

  With `each: function`, it calls the function with each event except the last, waits for the end of the run, and
  returns the same as `run/3`.
  """
  @spec run_stream(GenServer.server(), term, keyword) :: {:ok, Handle.t()} | {:error, Error.t()} | AxonCore.outcome()
  def run_stream(agent, prompt, options \\ []) do
    with {:ok, options} <- Options.validate(options, :agent_run_stream) do
      case Keyword.pop(options, :each) do
        {nil, options} -> start(agent, "run_stream", prompt, options)
        {each, options} -> options |> AxonCore.events(&start(agent, "run_stream", prompt, &1)) |> consume(each)
      end
    end
  end

  @doc "Returns a streamed run as a lazy stream: see `AxonCore.stream/4`."
  @spec stream(GenServer.server(), term, keyword) :: Enumerable.t()
  def stream(agent, prompt, options \\ []) do
    AxonCore.to_stream(options, &start(agent, "run_stream", prompt, &1))
  end

  @doc """
  Calls one Python tool of the agent without a model and waits for the result.

  #{AxonCore.Options.docs(:agent_call_tool)}
  """
  @spec call_tool(GenServer.server(), String.t(), map, keyword) :: AxonCore.outcome()
  def call_tool(agent, tool, args \\ %{}, options \\ []) do
    with :ok <- AxonCore.check_no_receiver(options),
         {:ok, options} <- Options.validate(options, :agent_call_tool) do
      {connection, definition} = GenServer.call(agent, :connection_and_agent)
      registered = if definition.registered, do: [agent: definition.registered], else: []
      AxonCore.call_tool(connection, tool, args, registered ++ options)
    end
  end

  @doc "Requests the cancellation of a run: see `AxonCore.cancel/1`."
  @spec cancel(GenServer.server(), Handle.t()) :: :ok | {:error, :ended}
  def cancel(_agent, handle), do: Connection.cancel(handle)

  @doc "Returns the messages of the conversation. To continue it later, pass them to `message_history`."
  @spec history(GenServer.server()) :: [map]
  def history(agent), do: GenServer.call(agent, :history)

  @doc "Replaces the conversation with the given messages, by default with none."
  @spec reset(GenServer.server(), [map]) :: :ok
  def reset(agent, messages \\ []), do: GenServer.call(agent, {:reset, messages})

  @doc false
  @spec start_run(GenServer.server(), String.t(), Agent.t() | String.t(), term, keyword, pid | nil) ::
          {:ok, Handle.t()} | {:error, Error.t()}
  def start_run(connection, kind, agent, prompt, options, observer \\ nil) do
    with {:ok, options} <- Options.validate(options, :run_stream),
         {:ok, body, agent_options} <- request(agent, prompt, options) do
      {_body_options, options} = Keyword.split(options, @body_keys)
      Connection.request(connection, kind, body, [observer: observer] ++ agent_options ++ options)
    end
  end

  # `Agent.of/1` and `Agent.request/3` raise if the caller gave a value that cannot be sent; the caller then receives
  # the error.
  defp request(agent, prompt, options) do
    agent = Agent.of(agent)
    body_options = options |> Keyword.take(@body_keys) |> Map.new()
    {body, functions} = Agent.request(agent, prompt, body_options)
    # The agent's `output` describes only results of the agent's own schema, not of an `output_schema` in the options.
    output = if body_options[:output_schema] == nil, do: agent.output
    {:ok, body, functions: functions, output: output}
  rescue
    error in Error -> {:error, error}
  end

  defp wait_for(agent, kind, prompt, options) do
    AxonCore.wait_for(options, &start(agent, kind, prompt, &1))
  end

  # Options are checked and tools are built in the calling process. Invalid options of one caller thus never crash the
  # agent's process, which other callers share.
  defp start(agent, kind, prompt, options) do
    with {:ok, options} <- Options.validate(options, :run_stream),
         {:ok, options} <- with_tools(options) do
      GenServer.call(agent, {:start, kind, prompt, Keyword.put_new(options, :to, self())}, :infinity)
    end
  end

  defp with_tools(options) do
    if options[:tools],
      do: {:ok, Keyword.update!(options, :tools, &ToolUtils.tools/1)},
      else: {:ok, options}
  rescue
    # `ToolUtils.tools/1` raises for invalid options of a tool.
    error in Error -> {:error, error}
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
    history = if options[:history], do: options[:message_history], else: :off
    connection = options[:connection]

    {:ok,
     %{agent: Agent.of(options[:agent]), connection: connection, history: history, running: nil, waiting: :queue.new()}}
  end

  @impl true
  def handle_call({:start, kind, prompt, options}, from, %{running: nil} = state) do
    {:noreply, begin(state, from, kind, prompt, options)}
  end

  def handle_call({:start, kind, prompt, options}, from, state) do
    {:noreply, %{state | waiting: :queue.in({from, kind, prompt, options}, state.waiting)}}
  end

  def handle_call(:connection_and_agent, _from, state), do: {:reply, {state.connection, state.agent}, state}
  def handle_call(:history, _from, %{history: :off} = state), do: {:reply, [], state}
  def handle_call(:history, _from, state), do: {:reply, state.history, state}
  def handle_call({:reset, _messages}, _from, %{history: :off} = state), do: {:reply, :ok, state}

  # The run that is executing continues, but its messages do not become part of the new conversation.
  def handle_call({:reset, messages}, _from, %{running: {ref, _before, monitors}} = state) do
    {:reply, :ok, %{state | history: messages, running: {ref, :discard, monitors}}}
  end

  def handle_call({:reset, messages}, _from, state), do: {:reply, :ok, %{state | history: messages}}

  @impl true
  def handle_info({:axon_ended, ref, event}, %{running: {ref, before, _monitors}} = state) do
    {:noreply, state |> ended() |> extend_history(before, event) |> next()}
  end

  # The connection has exited, and its runs with it; or the caller has exited, and the connection cancels the run.
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{running: {_ref, _before, monitors}} = state) do
    {:noreply, if(monitor in monitors, do: state |> ended() |> next(), else: state)}
  end

  def handle_info(_late, state), do: {:noreply, state}

  defp monitors(handle), do: Enum.map([handle.connection, handle.to], &Process.monitor/1)

  defp ended(%{running: {_ref, _before, monitors}} = state) do
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
    :exit, {reason, {GenServer, :call, _args}} ->
      text = "connection #{inspect(state.connection)} is not running or has exited: #{inspect(reason, limit: 5)}"
      {:error, Error.new(:no_connection, text)}
  end

  defp next(state) do
    case :queue.out(state.waiting) do
      {{:value, {from, kind, prompt, options}}, waiting} ->
        begin(%{state | waiting: waiting}, from, kind, prompt, options)

      {:empty, _waiting} ->
        state
    end
  end

  defp extend_history(state, before, {:complete, %Result{messages: messages}}) when is_list(before),
    do: %{state | history: before ++ messages}

  defp extend_history(state, _before, _event), do: state
end
