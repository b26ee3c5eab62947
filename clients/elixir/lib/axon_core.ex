defmodule AxonCore do
  @moduledoc """
  Elixir client of the axon_zmq daemon, which executes pydantic-ai agents.

      children = [
        {AxonCore.Connection, name: MyApp.Axon},
        {AxonCore.AgentProcess, name: MyApp.Support, connection: MyApp.Axon, agent: AxonCore.Agent.new("support")}
      ]

      {:ok, result} = AxonCore.AgentProcess.run(MyApp.Support, "Where is my parcel?")
      result.result

  `AxonCore.AgentProcess` sends requests for one agent and keeps its conversation. The functions in this module send
  single requests without a conversation.

  Starting a run returns an `AxonCore.Handle`. The messages of the run are sent to the process that started it:

      {:axon, ref, event}

  `ref` is the handle's `ref`, and `event` is one of these:

  | event | meaning |
  |---|---|
  | `{:chunk, chunk}` | a part of the answer, as an `AxonCore.Chunk`; only in `run_stream` |
  | `{:tool_call, call}` | the model calls a tool that has no function; answer it with `answer/3` |
  | `{:tool_cancelled, call_id}` | the daemon no longer waits for the answer to this call |
  | `{:log, record}` | a log record of the run's Python code; only with the option `log` |
  | `{:accepted, duplicate?}` | the daemon has accepted the request; only with `ack: true` |
  | `{:refused, error}` | the daemon refused a tool answer or a user message for the run; the run continues |
  | `{:complete, result}` | the run succeeded, with an `AxonCore.Result`; last message |
  | `{:error, error}` | the run failed, with an `AxonCore.Error`; last message |

  Each run has exactly one last message. If the connection's process exits, no more messages arrive. To detect that,
  monitor `handle.connection`; `await/2` does so.
  """

  alias AxonCore.{Agent, AgentProcess, Chunk, Connection, Error, Handle, Options, Result}

  @type outcome :: {:ok, Result.t()} | {:error, Error.t()}

  # Default credit of a lazy stream: the number of chunks and logs that the daemon may send before they are read.
  @default_credit 64

  @doc """
  Runs an agent once and waits for the result, as pydantic-ai's `Agent.run` does.

  #{AxonCore.Options.docs(:run)}
  """
  @spec run(GenServer.server(), Agent.t() | String.t(), term, keyword) :: outcome
  def run(connection, agent, prompt, options \\ []), do: run_once(connection, "run", agent, prompt, options)

  @doc """
  Runs an agent once in a separate thread of the worker, as pydantic-ai's `Agent.run_sync` does.

  Use it for agents with blocking code. It takes the options of `run/4`.
  """
  @spec run_sync(GenServer.server(), Agent.t() | String.t(), term, keyword) :: outcome
  def run_sync(connection, agent, prompt, options \\ []), do: run_once(connection, "run_sync", agent, prompt, options)

  @doc """
  Starts a streamed run and returns; the messages of the run are sent to the caller.

  It takes the options of `run/4`, and `to`: the pid or name of a process that receives the messages instead.

  With `credit: n`, the daemon sends at most `n` unacknowledged chunks and logs, and then stops reading the model's
  response. Acknowledge each with `took/2`. `await/2` and `stream/4` do this themselves.
  """
  @spec run_stream(GenServer.server(), Agent.t() | String.t(), term, keyword) :: {:ok, Handle.t()} | {:error, Error.t()}
  def run_stream(connection, agent, prompt, options \\ []) do
    AgentProcess.start_run(connection, "run_stream", agent, prompt, options)
  end

  @doc """
  Returns a streamed run as a lazy stream: its `AxonCore.Chunk`s and other events, then its `AxonCore.Result`.

  It takes the options of `run/4`.

  The run starts when the stream is first read. The daemon sends at most `credit` chunks and logs (by default
  #{@default_credit}) ahead of the reader: if the reader pauses, the model pauses too. If the run fails, the stream
  raises its `AxonCore.Error`. If the reader halts the stream before its end, the run is cancelled.
  """
  @spec stream(GenServer.server(), Agent.t() | String.t(), term, keyword) :: Enumerable.t()
  def stream(connection, agent, prompt, options \\ []) do
    to_stream(options, &run_stream(connection, agent, prompt, &1))
  end

  @doc """
  Calls one Python tool without a model and waits for the result.

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

  @doc "Lists the agents and toolsets of the daemon, or describes one agent: the body of a `catalog` message."
  @spec describe(GenServer.server(), String.t() | nil) :: {:ok, map} | {:error, Error.t()}
  def describe(connection, agent \\ nil) do
    body = if agent, do: %{agent: agent}, else: %{}
    wait_for([], &Connection.request(connection, "describe", body, &1))
  end

  @doc "Returns the identity, limits and load of the daemon: the body of a `pong` message."
  @spec ping(GenServer.server()) :: {:ok, map} | {:error, Error.t()}
  def ping(connection) do
    wait_for([], &Connection.request(connection, "ping", %{}, &1))
  end

  @doc """
  Waits for the last message of a run that the caller started, and drops the other messages of the run.

  Like `Task.await/2`, it exits if `timeout` milliseconds pass or if the connection's process exits. A timeout is rarely
  needed, because the run's own `timeout_ms` bounds it.
  """
  @spec await(Handle.t(), timeout) :: {:ok, Result.t() | map} | {:error, Error.t()}
  def await(handle, timeout \\ :infinity)

  def await(%Handle{to: to}, _timeout) when to != self() do
    raise ArgumentError, "cannot await this run from #{inspect(self())}: its messages are sent to #{inspect(to)}"
  end

  def await(%Handle{} = handle, timeout) do
    monitor = Process.monitor(handle.connection)
    deadline = if timeout == :infinity, do: :infinity, else: now() + timeout

    try do
      case wait(handle, monitor, deadline) do
        {:complete, result} -> {:ok, result}
        {:error, error} -> {:error, error}
        :timeout -> exit({:timeout, {__MODULE__, :await, [handle, timeout]}})
        {:down, reason} -> exit({reason, {__MODULE__, :await, [handle, timeout]}})
      end
    after
      Process.demonitor(monitor, [:flush])
    end
  end

  defp wait(%Handle{ref: ref} = handle, monitor, deadline) do
    receive do
      {:axon, ^ref, {:complete, _result} = ended} ->
        ended

      {:axon, ^ref, {:error, _error} = ended} ->
        ended

      {:axon, ^ref, event} ->
        acknowledge(handle, event)
        wait(handle, monitor, deadline)

      {:DOWN, ^monitor, :process, _pid, reason} ->
        {:down, reason}
    after
      if(deadline == :infinity, do: :infinity, else: max(0, deadline - now())) -> :timeout
    end
  end

  @doc "Acknowledges all chunks and logs up to this `seq`, so that the daemon may send more (flow control)."
  @spec took(Handle.t(), pos_integer) :: :ok
  defdelegate took(handle, seq), to: Connection

  @doc """
  Requests the cancellation of a run.

  The run's last message is then usually the error `:cancelled`, with the partial answer in its `details`.
  """
  @spec cancel(Handle.t()) :: :ok | {:error, :ended}
  defdelegate cancel(handle), to: Connection

  @doc """
  Sends a user message to a run while it executes.

  With the priority `:asap`, the model receives the message in its next request; with `:when_idle`, when it would
  otherwise end the run. Raises `AxonCore.Error` (`:invalid_argument`) if the content cannot be sent, or is larger than
  the daemon accepts.
  """
  @spec steer(Handle.t(), term, :asap | :when_idle) :: :ok | {:error, :ended}
  defdelegate steer(handle, content, priority \\ :asap), to: Connection

  @doc "Answers a `{:tool_call, call}` with a value that a tool's function may return. Raises as `steer/3` does."
  @spec answer(Handle.t(), String.t(), AxonCore.Tool.answer()) :: :ok | {:error, :ended}
  defdelegate answer(handle, call_id, answer), to: Connection

  @typep start :: (keyword -> {:ok, Handle.t()} | {:error, Error.t()})

  @doc false
  @spec wait_for(keyword, start) :: {:ok, Result.t() | map} | {:error, Error.t()}
  def wait_for(options, start) do
    with :ok <- check_no_receiver(options), {:ok, handle} <- start.(options), do: await(handle)
  end

  @doc false
  @spec to_stream(keyword, start) :: Enumerable.t()
  def to_stream(options, start) do
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
    with :ok <- check_no_receiver(options), {:ok, handle} <- start.(with_credit(options)) do
      {handle, Process.monitor(handle.connection)}
    end
  end

  # `start` validates the options and refuses anything but a keyword list.
  defp with_credit(options) do
    if Keyword.keyword?(options), do: Keyword.put_new(options, :credit, @default_credit), else: options
  end

  @doc false
  # The process that waits for a run, or reads its stream, must be the one that receives its messages.
  @spec check_no_receiver(keyword) :: :ok | {:error, Error.t()}
  def check_no_receiver(options) do
    if Keyword.keyword?(options) and Keyword.has_key?(options, :to),
      do: {:error, Error.new(:invalid_argument, "invalid option :to: only run_stream without `each` accepts it")},
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
        acknowledge(handle, event)
        {[with({:chunk, chunk} <- event, do: chunk)], state}

      {:DOWN, ^monitor, :process, _pid, reason} ->
        exit({reason, {__MODULE__, :stream, [handle]}})
    end
  end

  defp acknowledge(handle, {:chunk, %Chunk{seq: seq}}), do: took(handle, seq)
  defp acknowledge(handle, {:log, %{"seq" => seq}}), do: took(handle, seq)
  defp acknowledge(_handle, _needs_no_credit), do: :ok

  defp finish(:ended), do: :ok

  # The reader has halted the stream. `leave/1` stops further messages, so `flush/1` empties the mailbox for good.
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

  defp run_once(connection, kind, agent, prompt, options) do
    wait_for(options, &AgentProcess.start_run(connection, kind, agent, prompt, &1))
  end

  defp now, do: System.monotonic_time(:millisecond)
end
