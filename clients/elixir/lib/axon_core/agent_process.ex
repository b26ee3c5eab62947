defmodule AxonCore.AgentProcess do
  @moduledoc """
  An agent with a conversation.

      {AxonCore.AgentProcess, name: MyApp.Support, connection: MyApp.Axon, agent: AxonCore.Agent.new("support")}

  #{AxonCore.Options.docs(:agent_process)}

  With a history, runs follow one another: one that is started while another is under way waits for its end. Without, any
  number goes on at a time. What failed or was cancelled leaves the conversation as it was.

  ## Options of a run

  #{AxonCore.Options.docs(:agent_run_stream)}

  `to` and `each` are for `run_stream/3`, each without the other.

  A run that ends with `deferred` is gone on with by `run(agent, nil, deferred_tool_results: %{approvals: …})`.
  """

  use GenServer

  alias AxonCore.{Agent, Connection, Error, Handle, Options, Result, ToolUtils}

  @of_the_body Options.body()

  @type option ::
          {:agent, Agent.t() | String.t()}
          | {:connection, GenServer.server()}
          | {:name, GenServer.name()}
          | {:history, boolean}
          | {:message_history, [map]}

  @doc "Starts an agent's process."
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
    with {:ok, options} <- Options.validate(options, :agent_run_stream) do
      case Keyword.pop(options, :each) do
        {nil, options} -> start(agent, "run_stream", prompt, options)
        {each, options} -> options |> AxonCore.events(&start(agent, "run_stream", prompt, &1)) |> consume(each)
      end
    end
  end

  @doc "A streamed run as a lazy stream, with credit on the wire: see `AxonCore.stream/4`."
  @spec stream(GenServer.server(), term, keyword) :: Enumerable.t()
  def stream(agent, prompt, options \\ []) do
    AxonCore.lazily(options, &start(agent, "run_stream", prompt, &1))
  end

  @doc """
  Calls one Python tool of the agent's, without a model.

  #{AxonCore.Options.docs(:agent_call_tool)}
  """
  @spec call_tool(GenServer.server(), String.t(), map, keyword) :: AxonCore.outcome()
  def call_tool(agent, tool, args \\ %{}, options \\ []) do
    with :ok <- AxonCore.check_own(options),
         {:ok, options} <- Options.validate(options, :agent_call_tool) do
      {connection, of} = GenServer.call(agent, :who)
      of = if of.registered, do: [agent: of.registered], else: []
      AxonCore.call_tool(connection, tool, args, of ++ options)
    end
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
    with {:ok, options} <- Options.validate(options, :run_stream),
         {:ok, body, own} <- request(agent, prompt, options) do
      {_of_the_body, options} = Keyword.split(options, @of_the_body)
      Connection.request(connection, kind, body, [observer: observer] ++ own ++ options)
    end
  end

  # What cannot be sent is the mistake of who asked: `Agent.of/1` and `Agent.request/3` raise an error that says so.
  defp request(agent, prompt, options) do
    agent = Agent.of(agent)
    of_the_body = options |> Keyword.take(@of_the_body) |> Map.new()
    {body, functions} = Agent.request(agent, prompt, of_the_body)
    output = if of_the_body[:output_schema] == nil, do: agent.output
    {:ok, body, functions: functions, output: output}
  rescue
    error in Error -> {:error, error}
  end

  defp wait_for(agent, kind, prompt, options) do
    AxonCore.wait_for(options, &start(agent, kind, prompt, &1))
  end

  # The options are checked, and tools are made of them, in the process of the caller: the agent's process gets only data
  # that it can send.
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
    # A tool's options may be wrong, as `ToolUtils.tools/1` says.
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
    :exit, {reason, {GenServer, :call, _args}} ->
      text = "there is no connection #{inspect(state.connection)}, or it has just died: #{inspect(reason, limit: 5)}"
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

  defp grown(state, before, {:complete, %Result{messages: messages}}) when is_list(before),
    do: %{state | history: before ++ messages}

  defp grown(state, _before, _event), do: state
end
