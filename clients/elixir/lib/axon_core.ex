defmodule AxonCore do
  @moduledoc """
  pydantic-ai agents for OTP: the Elixir client of the axon_zmq daemon.

      children = [
        {AxonCore.Connection, name: MyApp.Axon, identity: "my-app-1"},
        {AxonCore.AgentProcess, name: MyApp.Support, connection: MyApp.Axon, agent: AxonCore.Agent.new("support")}
      ]

      {:ok, result} = AxonCore.AgentProcess.run(MyApp.Support, "Where is my parcel?")
      result.result

  Requests are made with `AxonCore.AgentProcess`, which has an agent and a conversation, or with `run/4` and the others
  here, which have none. Whatever was started is an `AxonCore.Handle`. Its messages come to who asked:

      {:axon, ref, event}

  | event | |
  |---|---|
  | `{:chunk, chunk}` | an `AxonCore.Chunk`; of `run_stream` alone |
  | `{:tool_call, call}` | a tool without a function is called: `answer/3` it |
  | `{:tool_cancelled, call_id}` | its answer is no longer wanted |
  | `{:log, record}` | what the run's Python code logs, with `log: :info` |
  | `{:accepted, duplicate?}` | with `ack: true` |
  | `{:refused, error}` | something that was said to the run could not be taken; the run goes on |
  | `{:complete, result}` | the end: an `AxonCore.Result` |
  | `{:error, error}` | the end: an `AxonCore.Error` |

  There is exactly one end, and nothing after it. When the connection's own process dies nothing more comes: it is
  `handle.connection`, to be monitored where that matters; `await/2` does.
  """

  alias AxonCore.{Agent, AgentProcess, Chunk, Connection, Error, Handle, Options, Result}

  @type outcome :: {:ok, Result.t()} | {:error, Error.t()}

  # Messages that may be on their way to who reads a lazy stream.
  @window 64

  @doc """
  Runs an agent once, without a conversation, and waits: pydantic-ai's `Agent.run`.

  #{AxonCore.Options.docs(:run)}
  """
  @spec run(GenServer.server(), Agent.t() | String.t(), term, keyword) :: outcome
  def run(connection, agent, prompt, options \\ []), do: once(connection, "run", agent, prompt, options)

  @doc """
  The same in a thread of its own: pydantic-ai's `Agent.run_sync`, for agents with blocking code.

  Options are those of `run/4`.
  """
  @spec run_sync(GenServer.server(), Agent.t() | String.t(), term, keyword) :: outcome
  def run_sync(connection, agent, prompt, options \\ []), do: once(connection, "run_sync", agent, prompt, options)

  @doc """
  Starts a streamed run; its messages come to the caller, or to `to`.

  Options are those of `run/4`, and `to`: a pid or the name of a process.

  With `credit: n` at most `n` chunks and logs are on their way, and the model is not read further, until `took/2` says that
  some were dealt with; `await/2` and the lazy `stream/4` say so by themselves.
  """
  @spec run_stream(GenServer.server(), Agent.t() | String.t(), term, keyword) :: {:ok, Handle.t()} | {:error, Error.t()}
  def run_stream(connection, agent, prompt, options \\ []) do
    AgentProcess.start_run(connection, "run_stream", agent, prompt, options)
  end

  @doc """
  A streamed run as a lazy stream: of `AxonCore.Chunk`s and whatever else comes, and of the `AxonCore.Result` at its end.

  Options are those of `run/4`.

  It begins when it is read, and goes on as it is read: a reader who stops for a while makes the model stop. At most
  `credit` messages (#{@window} where left out) are on their way. A run that fails raises its `AxonCore.Error`; a reader
  who stops for good cancels it.
  """
  @spec stream(GenServer.server(), Agent.t() | String.t(), term, keyword) :: Enumerable.t()
  def stream(connection, agent, prompt, options \\ []) do
    lazily(options, &run_stream(connection, agent, prompt, &1))
  end

  @doc """
  Calls one Python tool, without a model.

  #{AxonCore.Options.docs(:call_tool)}
  """
  @spec call_tool(GenServer.server(), String.t(), map, keyword) :: outcome
  def call_tool(connection, tool, args \\ %{}, options \\ []) do
    wait_for(options, fn options ->
      with {:ok, options} <- Options.validate(options, :call_tool) do
        {more, options} = Keyword.split(options, [:agent, :deps])
        Connection.request(connection, "call_tool", Map.merge(%{tool: tool, args: args}, Map.new(more)), options)
      end
    end)
  end

  @doc "What agents and toolsets there are: the body of a `catalog`."
  @spec describe(GenServer.server(), String.t() | nil) :: {:ok, map} | {:error, Error.t()}
  def describe(connection, agent \\ nil) do
    body = if agent, do: %{agent: agent}, else: %{}
    wait_for([], &Connection.request(connection, "describe", body, &1))
  end

  @doc "Who the daemon is and how it is: the body of a `pong`."
  @spec ping(GenServer.server()) :: {:ok, map} | {:error, Error.t()}
  def ping(connection) do
    wait_for([], &Connection.request(connection, "ping", %{}, &1))
  end

  @doc """
  Waits for the end of what the caller has started, as `Task.await/2` does; other messages of it are dropped.

  Exits where `timeout` milliseconds pass, or the connection's process dies. The run's own `timeout_ms` ends it at the
  latest, so this needs none.
  """
  @spec await(Handle.t(), timeout) :: {:ok, Result.t() | map} | {:error, Error.t()}
  def await(handle, timeout \\ :infinity)

  def await(%Handle{to: to}, _timeout) when to != self() do
    raise ArgumentError, "#{inspect(to)} hears of this run, and only it can await its end"
  end

  def await(%Handle{} = handle, timeout) do
    monitor = Process.monitor(handle.connection)
    until = if timeout == :infinity, do: :infinity, else: now() + timeout

    try do
      case wait(handle, monitor, until) do
        {:complete, result} -> {:ok, result}
        {:error, error} -> {:error, error}
        :timeout -> exit({:timeout, {__MODULE__, :await, [handle, timeout]}})
        {:down, reason} -> exit({reason, {__MODULE__, :await, [handle, timeout]}})
      end
    after
      Process.demonitor(monitor, [:flush])
    end
  end

  defp wait(%Handle{ref: ref} = handle, monitor, until) do
    receive do
      {:axon, ^ref, {:complete, _result} = ended} ->
        ended

      {:axon, ^ref, {:error, _error} = ended} ->
        ended

      {:axon, ^ref, event} ->
        took_event(handle, event)
        wait(handle, monitor, until)

      {:DOWN, ^monitor, :process, _pid, reason} ->
        {:down, reason}
    after
      if(until == :infinity, do: :infinity, else: max(0, until - now())) -> :timeout
    end
  end

  @doc "Says that a chunk or a log was dealt with, by its `seq`, so that there is credit for more."
  @spec took(Handle.t(), pos_integer) :: :ok
  defdelegate took(handle, seq), to: Connection

  @doc "Asks a run to end; its own last message says how it did, usually `:cancelled` with what there was."
  @spec cancel(Handle.t()) :: :ok | {:error, :ended}
  defdelegate cancel(handle), to: Connection

  @doc """
  Says more to a run under way: with the model's next request (`:asap`), or when it has nothing else to do.

  Raises `AxonCore.Error` (`:invalid_argument`) for what cannot be sent, or is larger than the daemon takes.
  """
  @spec steer(Handle.t(), term, :asap | :when_idle) :: :ok | {:error, :ended}
  defdelegate steer(handle, content, priority \\ :asap), to: Connection

  @doc "Answers a `{:tool_call, call}`, with what a tool's function would return. Raises as `steer/3` does."
  @spec answer(Handle.t(), String.t(), AxonCore.Tool.answer()) :: :ok | {:error, :ended}
  defdelegate answer(handle, call_id, answer), to: Connection

  @typep start :: (keyword -> {:ok, Handle.t()} | {:error, Error.t()})

  @doc false
  @spec wait_for(keyword, start) :: {:ok, Result.t() | map} | {:error, Error.t()}
  def wait_for(options, start) do
    with :ok <- check_own(options), {:ok, handle} <- start.(options), do: await(handle)
  end

  @doc false
  @spec lazily(keyword, start) :: Enumerable.t()
  def lazily(options, start) do
    Stream.map(events(options, start), fn
      {:ended, {:ok, result}} -> result
      {:ended, {:error, error}} -> raise error
      event -> event
    end)
  end

  @doc false
  @spec events(keyword, start) :: Enumerable.t()
  def events(options, start) do
    Stream.resource(fn -> begin(options, start) end, &next/1, &finish/1)
  end

  defp begin(options, start) do
    with :ok <- check_own(options), {:ok, handle} <- start.(with_credit(options)) do
      {handle, Process.monitor(handle.connection)}
    end
  end

  # What is no keyword list is refused by `start`.
  defp with_credit(options) do
    if Keyword.keyword?(options), do: Keyword.put_new(options, :credit, @window), else: options
  end

  @doc false
  # Who waits for a run, or reads it, is who hears of it.
  @spec check_own(keyword) :: :ok | {:error, Error.t()}
  def check_own(options) do
    if Keyword.keyword?(options) and Keyword.has_key?(options, :to),
      do: {:error, Error.new(:invalid_argument, "`to` is for run_stream, which does not wait")},
      else: :ok
  end

  defp next(:ended), do: {:halt, :ended}
  defp next({:error, error}), do: {[{:ended, {:error, error}}], :ended}

  defp next({%Handle{ref: ref} = handle, monitor} = state) do
    receive do
      {:axon, ^ref, {:complete, result}} ->
        Process.demonitor(monitor, [:flush])
        {[{:ended, {:ok, result}}], :ended}

      {:axon, ^ref, {:error, error}} ->
        Process.demonitor(monitor, [:flush])
        {[{:ended, {:error, error}}], :ended}

      {:axon, ^ref, event} ->
        took_event(handle, event)
        {[with({:chunk, chunk} <- event, do: chunk)], state}

      {:DOWN, ^monitor, :process, _pid, reason} ->
        exit({reason, {__MODULE__, :stream, [handle]}})
    end
  end

  defp took_event(handle, {:chunk, %Chunk{seq: seq}}), do: took(handle, seq)
  defp took_event(handle, {:log, %{"seq" => seq}}), do: took(handle, seq)
  defp took_event(_handle, _needs_no_credit), do: :ok

  defp finish(:ended), do: :ok

  # Its reader has had enough: nothing of it shall be left in the mailbox.
  defp finish({handle, monitor}) do
    Process.demonitor(monitor, [:flush])
    :ok = Connection.leave(handle)
    flush(handle.ref)
  end

  defp flush(ref) do
    receive do
      {:axon, ^ref, _event} -> flush(ref)
    after
      0 -> :ok
    end
  end

  defp once(connection, kind, agent, prompt, options) do
    wait_for(options, &AgentProcess.start_run(connection, kind, agent, prompt, &1))
  end

  defp now, do: System.monotonic_time(:millisecond)
end
