defmodule AxonCore.Connection do
  @moduledoc """
  Connection to the daemon: one DEALER socket for any number of agents and callers, which reconnects automatically.

      {AxonCore.Connection, name: MyApp.Axon, endpoint: "tcp://127.0.0.1:5570"}

  #{AxonCore.Options.docs(:connection)}

  This module owns the processes: the transport, the tasks of tools, and the monitors of callers. The rules of the
  protocol are implemented in `AxonCore.Session` and `AxonCore.Run`, which are pure.

  ## Runs whose owner exits

  If a caller exits, the connection cancels its runs.

  If the connection exits, the daemon ends the connection's runs after 15 s. If the connection is restarted in the same
  VM before that, the new process cancels each streamed run of the old one from which it receives a message, because no
  process waits for these runs any more. It never cancels runs with an explicit `id` or with `on_disconnect: :keep`; the
  application may resume them.
  """

  use GenServer
  require Logger

  alias AxonCore.{Codec, Error, Handle, Options, Run, SchemaUtils, Session, Telemetry, ToolSupervisor, ToolUtils}
  alias AxonCore.{Transport, UserCode}

  @header Options.header()
  @tick_ms 1_000
  # Delay before a failed transport is restarted; doubled after each failure.
  @min_reconnect_ms 500
  @max_reconnect_ms 5_000
  # Time that a tool which traps exits has to stop before it is killed; the same as for a supervised child.
  @tool_stop_timeout_ms 5_000

  @type option ::
          {:name, GenServer.name()}
          | {:endpoint, String.t()}
          | {:identity, String.t()}
          | {:transport, module}
          | {:frames, :single}

  @doc false
  def child_spec(options) do
    %{id: Keyword.get(options, :name, __MODULE__), start: {__MODULE__, :start_link, [options]}}
  end

  @doc "Starts a connection. The daemon need not be running yet: requests wait until it is reachable."
  @spec start_link([option]) :: GenServer.on_start()
  def start_link(options \\ []) do
    with {:ok, options} <- Options.validate(options, :connection),
         :ok <- Transport.check(options[:transport]),
         :ok <- Codec.check() do
      GenServer.start_link(__MODULE__, options, Keyword.take(options, [:name]))
    end
  end

  @doc """
  Sends a request. Its messages are sent to the caller, or to the process `to`.

  #{AxonCore.Options.docs(:request)}
  """
  @spec request(GenServer.server(), String.t(), map, keyword) :: {:ok, Handle.t()} | {:error, Error.t()}
  def request(connection, kind, body, options \\ []) do
    with {:ok, options} <- Options.validate(options, :request),
         {:ok, to} <- receiver(Keyword.get(options, :to, self())),
         {:ok, run} <- new_run(kind, body, options) do
      caller = options |> Keyword.take([:output, :cast, :observer]) |> Map.new() |> Map.put(:to, to)
      GenServer.call(connection, {:start, run, caller}, :infinity)
    end
  end

  defp new_run(kind, body, options) do
    header = options |> Keyword.take(@header) |> Map.new()
    id = Keyword.get_lazy(options, :id, fn -> new_id(header[:on_disconnect]) end)
    {:ok, Run.new(id, kind, header, body, options[:functions], now())}
  rescue
    # `Run.new/6` raises if header or body cannot be sent.
    error in Error -> {:error, error}
  end

  # A run that survives a disconnect gets an id without the VM's prefix: a restarted connection cancels runs that are
  # unknown to it and have this prefix, see `AxonCore.Session`.
  defp new_id(on_disconnect), do: if(on_disconnect in [:keep, "keep"], do: random(), else: id_prefix() <> random())

  # Prefix of the ids of the runs that this VM starts and that do not survive a disconnect.
  defp id_prefix do
    key = {__MODULE__, :id_prefix}
    :persistent_term.get(key, nil) || tap("ex-#{binary_part(random(), 0, 8)}-", &:persistent_term.put(key, &1))
  end

  defp receiver(to) do
    pid = GenServer.whereis(to)

    if is_pid(pid) and (node(pid) != node() or Process.alive?(pid)),
      do: {:ok, pid},
      else:
        {:error, Error.new(:invalid_argument, "invalid option :to of a request: process #{inspect(to)} is not running")}
  end

  @doc "Requests the cancellation of a run: see `AxonCore.cancel/1`."
  @spec cancel(Handle.t()) :: :ok | {:error, :ended}
  def cancel(handle), do: call(handle, {:cancel, handle.ref})

  @doc "Sends a user message to a run while it executes: see `AxonCore.steer/3`."
  @spec steer(Handle.t(), term, :asap | :when_idle) :: :ok | {:error, :ended}
  def steer(handle, content, priority \\ :asap) do
    call(handle, {:steer, handle.ref, Run.steer_body(content, priority)})
  end

  @doc "Answers a call received as `{:tool_call, call}`. Any process may answer. Raises as `steer/3` does."
  @spec answer(Handle.t(), String.t(), AxonCore.Tool.answer()) :: :ok | {:error, :ended}
  def answer(handle, call_id, answer) do
    if not (is_binary(call_id) and String.valid?(call_id)),
      do: raise(Error.new(:invalid_argument, "invalid call_id: expected text in UTF-8, got: #{inspect(call_id)}"))

    call(handle, {:answer, handle.ref, call_id, ToolUtils.packed_answer(answer)})
  end

  @doc "Acknowledges all chunks and logs up to this `seq`: see `AxonCore.took/2`."
  @spec took(Handle.t(), pos_integer) :: :ok
  def took(%Handle{credit: nil}, _seq), do: :ok
  def took(handle, seq) when is_integer(seq), do: GenServer.cast(handle.connection, {:took, handle.ref, seq})

  # If the connection has exited, no message of its runs can arrive any more, so the run counts as ended.
  defp call(handle, message) do
    with {:invalid, error} <- GenServer.call(handle.connection, message, :infinity), do: raise(error)
  catch
    :exit, {_reason, {GenServer, :call, _args}} -> {:error, :ended}
  end

  @doc false
  # Cancels a run, and guarantees that its receiver gets no more messages of it once this function has returned.
  @spec leave(Handle.t()) :: :ok
  def leave(handle) do
    GenServer.call(handle.connection, {:leave, handle.ref}, :infinity)
  catch
    :exit, {_reason, {GenServer, :call, _args}} -> :ok
  end

  # --- the process ---------------------------------------------------------------------------------

  @impl true
  def init(options) do
    # The exit of the linked transport must arrive as a message, so that another one is started.
    Process.flag(:trap_exit, true)

    case ToolSupervisor.start() do
      {:ok, tools, tasks} -> {:ok, new(options, Process.monitor(tools), tasks), {:continue, :connect}}
      {:error, error} -> {:stop, error}
    end
  end

  defp new(options, tools, task_supervisor) do
    {:ok, {host, port}} = Options.address(options[:endpoint])
    {identity, instance} = identity_and_instance(options)
    greeting = if options[:frames] == :single, do: %{frames: "single"}, else: %{}
    {:ok, _timer} = :timer.send_interval(@tick_ms, :tick)

    %{
      session: Session.new(instance, now(), greeting, id_prefix()),
      module: options[:transport],
      options: [identity: identity, host: host, port: port],
      transport: nil,
      unsent: :queue.new(),
      wait: @min_reconnect_ms,
      tools: tools,
      task_supervisor: task_supervisor,
      callers: %{},
      ids: %{},
      tasks: %{}
    }
  end

  # The random part is the same for every start of one connection in a VM, because chumak turns identities into atoms,
  # which are never freed.
  defp identity_and_instance(options) do
    key = {__MODULE__, options[:name] || unnamed(1)}
    random = :persistent_term.get(key, nil) || tap(random(), &:persistent_term.put(key, &1))
    {options[:identity] || "ex-" <> random, random}
  end

  # Registers the first free name. It is free again when this process exits, so a restarted connection gets it back.
  defp unnamed(number) do
    name = Module.concat(__MODULE__, "Unnamed#{number}")
    true = Process.register(self(), name)
    name
  rescue
    # `Process.register/2` raises this if the name is taken.
    ArgumentError -> unnamed(number + 1)
  end

  @impl true
  def handle_continue(:connect, state), do: {:noreply, connect(state)}

  @impl true
  def handle_call({:start, run, caller}, _from, state) do
    case Session.start(state.session, run, now()) do
      {:ok, actions, session} ->
        ref = make_ref()
        more = %{ref: ref, monitor: Process.monitor(caller.to), began: System.monotonic_time(), kind: run.kind}
        state = %{state | session: session, ids: Map.put(state.ids, ref, run.id)}
        state = put_in(state.callers[run.id], Map.merge(caller, more))
        Telemetry.execute([:run, :start], %{system_time: System.system_time()}, %{kind: run.kind, id: run.id})

        handle = %Handle{
          ref: ref,
          id: run.id,
          kind: run.kind,
          connection: self(),
          to: caller.to,
          credit: run.credit && run.credit.window
        }

        {:reply, {:ok, handle}, perform(state, actions)}

      {:error, error} ->
        {:reply, {:error, error}, state}
    end
  end

  def handle_call({:cancel, ref}, _from, state), do: reply_with_run(state, ref, &Run.cancel/1)
  def handle_call({:steer, ref, packed}, _from, state), do: reply_with_run(state, ref, &Run.steer(&1, packed))

  def handle_call({:answer, ref, call_id, packed}, _from, state) do
    reply_with_run(state, ref, &Run.answer(&1, call_id, packed))
  end

  def handle_call({:leave, ref}, _from, state) do
    case state.ids do
      %{^ref => id} ->
        Process.demonitor(state.callers[id].monitor, [:flush])
        {:reply, :ok, abandon(put_in(state.callers[id].to, nil), id)}

      _ended ->
        {:reply, :ok, state}
    end
  end

  @impl true
  def handle_cast({:took, ref, seq}, state) do
    {:noreply, try_with_run(state, state.ids[ref], &Run.took(&1, seq))}
  end

  @impl true
  def handle_info({:axon_transport, pid, {:received, frames}}, %{transport: pid} = state) do
    {actions, session} = Session.handle_frames(state.session, frames, now())
    {:noreply, perform(%{state | session: session, wait: @min_reconnect_ms}, actions)}
  end

  def handle_info({:axon_transport, _earlier, _message}, state), do: {:noreply, state}

  def handle_info(:tick, state) do
    idle? = state.transport != nil and state.module.waiting(state.transport) == 0
    {actions, session} = Session.tick(state.session, now(), idle?)
    {:noreply, perform(%{state | session: session}, actions)}
  end

  def handle_info(:connect, state), do: {:noreply, connect(state)}

  # The task of a tool has returned.
  def handle_info({task, packed}, state) when is_map_key(state.tasks, task) do
    Process.demonitor(task, [:flush])
    {:noreply, finished(state, task, packed, :ok)}
  end

  def handle_info({:DOWN, task, :process, _pid, reason}, state) when is_map_key(state.tasks, task) do
    {:noreply, finished(state, task, ToolUtils.crashed(reason), :crash)}
  end

  # No tool can be executed any more: exit, so that the application's supervisor restarts the connection with new tasks.
  def handle_info({:DOWN, tools, :process, _pid, reason}, %{tools: tools} = state) do
    {:stop, {:tool_supervisor_ended, reason}, state}
  end

  # A caller has exited, so its run is cancelled.
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, state) do
    case Enum.find(state.callers, fn {_id, caller} -> caller.monitor == monitor end) do
      {id, _caller} -> {:noreply, abandon(state, id)}
      nil -> {:noreply, state}
    end
  end

  def handle_info({:EXIT, pid, reason}, %{transport: pid} = state) do
    Logger.warning(
      "axon_core: connection #{state.options[:identity]} lost (#{inspect(reason)}); reconnecting in #{state.wait} ms"
    )

    metadata = %{identity: state.options[:identity], reason: reason}
    Telemetry.execute([:connection, :down], %{system_time: System.system_time()}, metadata)
    {:noreply, connect_later(%{state | transport: nil})}
  end

  def handle_info(_late, state), do: {:noreply, state}

  # --- the transport -------------------------------------------------------------------------------

  defp connect(%{transport: nil} = state) do
    case state.module.start_link(self(), state.options) do
      {:ok, pid} ->
        Telemetry.execute([:connection, :up], %{system_time: System.system_time()}, %{
          identity: state.options[:identity]
        })

        {actions, session} = Session.connected(state.session, now())
        unsent = :queue.to_list(state.unsent)
        Enum.each(unsent, &state.module.transmit(pid, &1))
        perform(%{state | transport: pid, session: session, unsent: :queue.new()}, actions)

      {:error, reason} ->
        Logger.warning(
          "axon_core: cannot open a socket for #{state.options[:identity]} (#{inspect(reason)}); " <>
            "retrying in #{state.wait} ms"
        )

        connect_later(state)
    end
  end

  defp connect(state), do: state

  defp connect_later(state) do
    Process.send_after(self(), :connect, state.wait)
    %{state | wait: min(2 * state.wait, @max_reconnect_ms)}
  end

  defp transmit(%{transport: nil} = state, frames), do: %{state | unsent: :queue.in(frames, state.unsent)}

  defp transmit(state, frames) do
    :ok = state.module.transmit(state.transport, frames)
    state
  end

  # The run stays open until its last message has arrived.
  defp abandon(state, id), do: state |> stop(id, :all) |> try_with_run(id, &Run.cancel/1)

  # --- actions of the session ----------------------------------------------------------------------

  # Does nothing if the run has ended in the meantime.
  defp try_with_run(state, id, fun),
    do: with({:ok, state} <- with_run(state, id, fun), do: state, else: (_ -> state))

  defp reply_with_run(state, ref, fun) do
    case with_run(state, state.ids[ref], fun) do
      {:ok, state} -> {:reply, :ok, state}
      # The message is larger than the daemon accepts.
      {:error, error} -> {:reply, {:invalid, error}, state}
      :ended -> {:reply, {:error, :ended}, state}
    end
  end

  defp with_run(_state, nil, _fun), do: :ended

  defp with_run(state, id, fun) do
    with {:ok, actions, session} <- Session.with_run(state.session, id, fun) do
      {:ok, perform(%{state | session: session}, actions)}
    end
  end

  defp perform(state, actions), do: Enum.reduce(actions, state, &act/2)

  defp act(:shared, state) do
    Logger.error(
      "axon_core: another process uses the identity #{state.options[:identity]}, and only one of the two receives " <>
        "messages; give each process its own identity"
    )

    state
  end

  defp act({_id, {:transmit, frames}}, state), do: transmit(state, frames)
  defp act({id, {:event, event}}, state), do: notify(state, id, event)
  defp act({id, {:stop, call_id}}, state), do: stop(state, id, call_id)

  defp act({id, {:call, call, function}}, state) do
    max_bytes = state.session.max_body
    task = Task.Supervisor.async_nolink(state.task_supervisor, ToolUtils, :call, [function, call.args, max_bytes])
    running = %{id: id, call_id: call.call_id, name: call.name, pid: task.pid, began: System.monotonic_time()}
    put_in(state.tasks[task.ref], running)
  end

  defp act({id, {:ended, event}}, state) do
    case pop_in(state.callers[id]) do
      {nil, state} ->
        state

      {caller, state} ->
        Process.demonitor(caller.monitor, [:flush])
        event = cast(caller, event)
        # The observer comes first: an agent's process must have the new messages of the conversation before its caller
        # can start the next run.
        if caller[:observer], do: send(caller.observer, {:axon_ended, caller.ref, event})
        if caller.to, do: send(caller.to, {:axon, caller.ref, event})
        emit_stop(caller, id, event)
        stop(%{state | ids: Map.delete(state.ids, caller.ref)}, id, :all)
    end
  end

  defp emit_stop(caller, id, event) do
    outcome = with {:error, error} <- event, do: error.type
    outcome = if is_tuple(outcome), do: :complete, else: outcome
    duration = System.monotonic_time() - caller.began
    Telemetry.execute([:run, :stop], %{duration: duration}, %{kind: caller.kind, id: id, outcome: outcome})
  end

  defp cast(caller, {:complete, %AxonCore.Result{deferred: nil} = result} = event) do
    case cast_result(caller, result.result) do
      {:ok, value} -> {:complete, %{result | result: value}}
      {:error, reason, details} -> {:error, uncastable(reason, Map.put(details, "result", result.result))}
      :unchanged -> event
    end
  end

  defp cast(_caller, event), do: event

  defp cast_result(%{cast: cast}, value) when cast != nil do
    case UserCode.call(cast, [value]) do
      {:ok, {:ok, value}} ->
        {:ok, value}

      {:ok, {:error, faults}} ->
        {:error, "", %{"errors" => faults}}

      {:ok, _other} ->
        :unchanged

      {:error, {kind, reason, _stack}} ->
        {:error, ": the function `cast` failed: #{inspect({kind, reason}, limit: 20)}", %{}}
    end
  end

  defp cast_result(%{output: spec}, value) when spec != nil do
    with {:error, faults} <- SchemaUtils.cast(value, spec), do: {:error, "", %{"errors" => faults}}
  end

  defp cast_result(_caller, _value), do: :unchanged

  defp uncastable(reason, details) do
    Error.new(:unreadable, "the result does not fit the agent's output#{reason}", details)
  end

  defp notify(state, id, event) do
    with %{to: to, ref: ref} when to != nil <- state.callers[id], do: send(to, {:axon, ref, event})
    state
  end

  # --- tools ---------------------------------------------------------------------------------------

  defp finished(state, task, packed, outcome) do
    {running, state} = pop_in(state.tasks[task])
    duration = System.monotonic_time() - running.began
    Telemetry.execute([:tool, :stop], %{duration: duration}, %{name: running.name, id: running.id, outcome: outcome})

    with {:error, error} <- with_run(state, running.id, &Run.answer(&1, running.call_id, packed)) do
      # The daemon may have announced a smaller `max_body` while the tool was executing.
      try_with_run(state, running.id, &Run.answer(&1, running.call_id, ToolUtils.failure(error.message)))
    else
      {:ok, state} -> state
      :ended -> state
    end
  end

  defp stop(state, id, which) do
    stopped =
      for {task, %{id: ^id} = running} <- state.tasks, which in [:all, running.call_id] do
        Process.demonitor(task, [:flush])
        Process.exit(running.pid, :shutdown)
        {:ok, _timer} = :timer.exit_after(@tool_stop_timeout_ms, running.pid, :kill)
        task
      end

    %{state | tasks: Map.drop(state.tasks, stopped)}
  end

  # Random bits rather than a counter: ids and identities must not collide with the ids of other VMs.
  defp random, do: Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)
  defp now, do: System.monotonic_time(:millisecond)
end
