defmodule AxonCore.ConnectionTest do
  use ExUnit.Case

  import AxonCore.Waiting
  alias AxonCore.{AgentProcess, Chunk, Connection, Error, FakeTransport, Result}

  setup do
    Process.register(self(), :connection_test)

    events =
      for event <- [[:run, :start], [:run, :stop], [:connection, :up], [:connection, :down]], do: [:axon_core | event]

    :telemetry.attach_many(:connection_test, events, &__MODULE__.forward/4, self())
    on_exit(fn -> :telemetry.detach(:connection_test) end)
    connection = start_supervised!({Connection, identity: "connection_test", transport: FakeTransport})
    assert_receive {:up, transport}
    assert_receive {:sent, ^transport, ["ping" | _]}
    %{connection: connection, transport: transport}
  end

  def forward(event, measurements, metadata, test), do: send(test, {:event, event, measurements, metadata})

  test "the caller receives the messages of its request", %{connection: connection, transport: transport} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x", timeout_ms: 5)
    assert_receive {:sent, ^transport, ["run_stream", id, _header, _body]}
    ref = handle.ref
    FakeTransport.deliver(transport, "chunk", id, %{seq: 1, type: "text", data: "x"})
    assert_receive {:axon, ^ref, {:chunk, %Chunk{data: "x"}}}
    FakeTransport.deliver(transport, "complete", id, %{seq: 2, result: "x"})
    assert_receive {:axon, ^ref, {:complete, %Result{result: "x"}}}
    assert AxonCore.cancel(handle) == {:error, :ended}
  end

  test "invalid input is reported to its caller and does not affect the connection", %{
    connection: connection,
    transport: transport
  } do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x")
    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    assert_raise Error, fn -> AxonCore.steer(handle, <<255>>) end
    assert_raise Error, fn -> AxonCore.answer(handle, {:no, :id}, {:ok, 1}) end

    for wrong <- [
          [id: 123],
          [id: ""],
          [id: String.duplicate("x", 65)],
          [to: :not_registered],
          [to: "abc"],
          [tools: nil],
          [tools: [name: "a"]],
          [tools: [5]],
          [to: {1, 2, 3}],
          [timeout: 5],
          %{timeout_ms: 5}
        ] do
      assert {:error, %Error{type: :invalid_argument}} = AxonCore.run_stream(connection, "echo", "x", wrong)
    end

    for options <- [%{timeout_ms: 5}, [to: self()]] do
      assert {:error, %Error{type: :invalid_argument}} = AxonCore.run(connection, "echo", "x", options)
      assert {:error, %Error{type: :invalid_argument}} = AxonCore.call_tool(connection, "tool", %{}, options)
      assert_raise Error, fn -> connection |> AxonCore.stream("echo", "x", options) |> Enum.to_list() end
    end

    for prompt <- [["a" | "b"], [{:a, 1} | :b]],
        do: assert({:error, %Error{type: :invalid_argument}} = AxonCore.run(connection, "echo", prompt))

    assert {:error, %Error{type: :invalid_argument}} = AxonCore.run(connection, :echo, "x")
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    assert {:error, %Error{type: :invalid_argument}} = AgentProcess.run(agent, "x", timeout_ms: :infinity)
    FakeTransport.deliver(transport, "error", id, %{seq: 1, error_type: "unknown_request", details: 5})
    assert {:error, %Error{}} = AxonCore.await(handle)
    assert Process.alive?(connection)
  end

  test "invalid input to an agent's process is reported to its caller, and the conversation continues", %{
    connection: connection,
    transport: transport
  } do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")

    for wrong <- [
          [tools: [[name: "a", parameters: {:tuple, :string}]]],
          [tools: [[name: "a"], [name: "a"]]],
          [model_settings: %{temperature: self()}],
          [message_history: [%{a: {1, 2}}]],
          [timeout_ms: "5"]
        ] do
      assert {:error, %Error{type: :invalid_argument}} = AgentProcess.run(agent, "x", wrong)
    end

    assert {:error, %Error{type: :invalid_argument}} = AgentProcess.run(agent, self())
    assert {:error, %Error{type: :invalid_argument}} = AgentProcess.run_stream(agent, "x", %{timeout_ms: 5})
    run = Task.async(fn -> AgentProcess.run(agent, "x") end)
    assert_receive {:sent, ^transport, ["run", id | _]}
    FakeTransport.deliver(transport, "complete", id, %{seq: 1, result: "x"})
    assert {:ok, %Result{result: "x"}} = Task.await(run)
  end

  test "a result is cast to the output, or by a function, which may fail", %{
    connection: connection,
    transport: transport
  } do
    for {options, result, expected} <- [
          {[output: [day: :date]], %{day: "2026-01-02"}, {:ok, %{day: ~D[2026-01-02]}}},
          {[output: [day: :date]], %{day: 5}, :unreadable},
          {[cast: &{:ok, String.upcase(&1)}], "x", {:ok, "X"}},
          {[cast: fn _ -> {:error, ["no"]} end], "x", :unreadable},
          {[cast: fn _ -> :unchanged end], "x", {:ok, "x"}},
          {[cast: fn _ -> raise "no" end], "x", :unreadable},
          {[cast: fn _ -> throw(:no) end], "x", :unreadable},
          {[cast: fn _ -> exit(:no) end], "x", :unreadable}
        ] do
      {:ok, handle} = Connection.request(connection, "run", %{agent: "echo"}, options)
      assert_receive {:sent, ^transport, ["run", id | _]}
      FakeTransport.deliver(transport, "complete", id, %{seq: 1, result: result})

      case expected do
        {:ok, value} ->
          assert {:ok, %Result{result: ^value}} = AxonCore.await(handle)

        :unreadable ->
          assert {:error, %Error{type: :unreadable, details: %{"result" => _}}} = AxonCore.await(handle)
      end
    end
  end

  test "a tool that raises, exits or throws fails, and the run continues", %{
    connection: connection,
    transport: transport
  } do
    ends = [
      fn _ -> raise <<255>> end,
      fn _ -> exit({:bad_rows, [{"a", 1, 2, "x"}]}) end,
      fn _ -> exit({%{__struct__: Error}, []}) end,
      fn _ -> throw(self()) end,
      fn _ -> {:ok, [1 | 2]} end
    ]

    assert {:ok, %{"error" => _}} =
             AxonCore.Codec.unpack(
               AxonCore.ToolUtils.crashed({%{__struct__: AxonCore.UnprintableError, __exception__: true}, []})
             )

    for function <- ends do
      {:ok, handle} =
        AxonCore.run_stream(connection, "echo", "x", tools: [[name: "bad", parameters: %{}, function: function]])

      assert_receive {:sent, ^transport, ["run_stream", id | _]}
      FakeTransport.deliver(transport, "tool_call", id, %{seq: 1, call_id: "c", name: "bad", args: %{}})
      assert_receive {:sent, ^transport, ["tool_result", ^id, _, body]}
      assert {:ok, %{"error" => %{"retry" => false}}} = AxonCore.Codec.unpack(body)
      FakeTransport.deliver(transport, "complete", id, %{seq: 2, result: "x"})
      assert {:ok, _} = AxonCore.await(handle)
    end
  end

  test "times in the result of a tool become text", %{connection: connection, transport: transport} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x")
    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    FakeTransport.deliver(transport, "tool_call", id, %{seq: 1, call_id: "c", name: "when", args: %{}})
    :ok = AxonCore.answer(handle, "c", {:ok, %{at: [~U[2026-01-02 03:04:05Z]]}})
    assert_receive {:sent, ^transport, ["tool_result", ^id, _, body]}
    assert AxonCore.Codec.unpack(body) == {:ok, %{"result" => %{"at" => ["2026-01-02T03:04:05Z"]}}}
  end

  test "halting a stream does not wait for the daemon, and no more messages arrive", %{
    connection: connection,
    transport: transport
  } do
    test = self()

    reader =
      Task.async(fn ->
        taken = connection |> AxonCore.stream("echo", "x") |> Enum.take(1)
        send(test, :stopped)
        receive do: (:look -> {taken, Process.info(self(), :messages)})
      end)

    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    FakeTransport.deliver(transport, "chunk", id, %{seq: 1, type: "text", data: "x"})
    # The reader has stopped although the daemon has sent nothing more.
    assert_receive :stopped
    assert_receive {:sent, ^transport, ["cancel", ^id]}
    FakeTransport.deliver(transport, "chunk", id, %{seq: 2, type: "text", data: "y"})
    FakeTransport.deliver(transport, "error", id, %{seq: 3, error_type: "cancelled"})
    assert_receive {:event, [:axon_core, :run, :stop], _, %{outcome: :cancelled}}
    send(reader.pid, :look)
    assert {[%Chunk{data: "x"}], {:messages, []}} = Task.await(reader)
  end

  test "the error about a result that does not fit the output contains the result", %{
    connection: connection,
    transport: transport
  } do
    agent = AxonCore.Agent.new(registered: "echo", output: :date)
    {:ok, handle} = AxonCore.run_stream(connection, agent, "x")
    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    FakeTransport.deliver(transport, "complete", id, %{seq: 1, result: "soon"})
    assert {:error, %Error{type: :unreadable, details: details}} = AxonCore.await(handle)
    assert %{"result" => "soon", "errors" => [%{message: message}]} = details
    assert message =~ "invalid date or time"
  end

  test "a restarted connection cancels the runs of its predecessor, except those to be kept", %{
    connection: connection,
    transport: transport
  } do
    {:ok, _} = AxonCore.run_stream(connection, "echo", "x")
    {:ok, _} = AxonCore.run_stream(connection, "echo", "x", on_disconnect: :keep)
    {:ok, _} = AxonCore.run_stream(connection, "echo", "x", id: "mine")

    ids =
      for _ <- 1..3,
          do:
            (
              assert_receive {:sent, ^transport, ["run_stream", id | _]}
              id
            )

    Process.exit(connection, :kill)
    assert_receive {:up, another}
    for id <- ids, do: FakeTransport.deliver(another, "chunk", id, %{seq: 7, type: "text", data: "x"})
    left = hd(ids)
    assert_receive {:sent, ^another, ["cancel", ^left]}
    refute_receive {:sent, ^another, ["cancel", _]}, 50
  end

  test "a conversation continues after a stream was halted, without the messages of that run", %{
    connection: connection,
    transport: transport
  } do
    test = self()

    slow = [
      name: "slow",
      parameters: %{},
      function: fn _ -> send(test, {:tool, self()}) && Process.sleep(:infinity) end
    ]

    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    reader = Task.async(fn -> agent |> AgentProcess.stream("1", tools: [slow]) |> Enum.take(1) end)
    assert_receive {:sent, ^transport, ["run_stream", one | _]}
    FakeTransport.deliver(transport, "tool_call", one, %{seq: 1, call_id: "c", name: "slow", args: %{}})
    assert_receive {:tool, tool}
    monitor = Process.monitor(tool)
    FakeTransport.deliver(transport, "chunk", one, %{seq: 2, type: "text", data: "x"})
    assert [%Chunk{}] = Task.await(reader)
    assert_receive {:DOWN, ^monitor, :process, _, :shutdown}
    assert_receive {:sent, ^transport, ["cancel", ^one]}
    next = Task.async(fn -> AgentProcess.run(agent, "2") end)
    FakeTransport.deliver(transport, "complete", one, %{seq: 3, messages: [%{of: "one"}]})
    assert_receive {:sent, ^transport, ["run", two | _]}
    FakeTransport.deliver(transport, "complete", two, %{seq: 1, messages: [%{of: "two"}]})
    assert {:ok, _} = Task.await(next)
    assert %{"of" => "two"} = List.last(AgentProcess.history(agent))
  end

  test "only the receiver of a run's messages can await it", %{connection: connection} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x", to: spawn(fn -> Process.sleep(:infinity) end))
    assert_raise ArgumentError, ~r/cannot await this run/, fn -> AxonCore.await(handle) end
  end

  test "functions that wait refuse the option :to before they send a request", %{connection: connection} do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    exited = spawn(fn -> :ok end)

    for start <- [
          &AxonCore.run(connection, "echo", "x", &1),
          &AxonCore.run_sync(connection, "echo", "x", &1),
          &AxonCore.call_tool(connection, "tool", %{}, &1),
          &AgentProcess.run(agent, "x", &1),
          &AgentProcess.call_tool(agent, "tool", %{}, &1),
          &AgentProcess.run_stream(agent, "x", [each: fn _ -> :ok end] ++ &1)
        ] do
      assert {:error, %Error{type: :invalid_argument, message: message}} = start.(to: exited)
      assert message =~ "invalid option :to"
    end

    assert_raise Error, ~r/option :to/, fn ->
      connection |> AxonCore.stream("echo", "x", to: exited) |> Enum.to_list()
    end

    assert {:error, %Error{message: message}} = AgentProcess.run(agent, "x", observer: exited)
    assert message =~ ":observer"
    refute_receive {:sent, _transport, ["run" <> _ | _]}, 50
  end

  test "a queued run whose caller has exited is not started", %{connection: connection, transport: transport} do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    {:ok, first} = AgentProcess.run_stream(agent, "1")
    assert_receive {:sent, ^transport, ["run_stream", one | _]}
    {caller, monitor} = spawn_monitor(fn -> AgentProcess.run(agent, "2") end)
    assert eventually(fn -> :queue.len(:sys.get_state(agent).waiting) == 1 end)
    Process.exit(caller, :kill)
    assert_receive {:DOWN, ^monitor, _, _, _}
    last = Task.async(fn -> AgentProcess.run(agent, "3") end)
    FakeTransport.deliver(transport, "complete", one, %{seq: 1, messages: []})
    assert {:ok, _} = AxonCore.await(first)
    assert_receive {:sent, ^transport, ["run", three, _, body]}
    assert {:ok, %{"prompt" => "3"}} = AxonCore.Codec.unpack(body)
    FakeTransport.deliver(transport, "complete", three, %{seq: 1, messages: []})
    assert {:ok, _} = Task.await(last)
  end

  test "reading logs from a lazy stream grants credit", %{connection: connection, transport: transport} do
    reader = Task.async(fn -> connection |> AxonCore.stream("echo", "x", credit: 4, log: :info) |> Enum.to_list() end)
    assert_receive {:sent, ^transport, ["run_stream", id | _]}

    for seq <- 1..3, do: FakeTransport.deliver(transport, "log", id, %{seq: seq, message: "x"})
    assert_receive {:sent, ^transport, ["credit", ^id, header]}
    assert {:ok, %{"upto" => 7}} = AxonCore.Codec.unpack(header)
    FakeTransport.deliver(transport, "complete", id, %{seq: 4, result: "x"})
    assert [{:log, _}, {:log, _}, {:log, _}, %Result{}] = Task.await(reader)
  end

  test "each connection without a name gets its own identity, and keeps it over a restart" do
    pids = for id <- [:a, :b], do: start_supervised!({Connection, transport: AxonCore.ReportingTransport}, id: id)
    assert [first, second] = for(pid <- pids, do: identity_of(pid))
    assert first != second
    :ok = stop_supervised(:a)
    again = start_supervised!({Connection, transport: AxonCore.ReportingTransport}, id: :a)
    assert identity_of(again) == first
  end

  defp identity_of(pid) do
    assert_receive {:identity, ^pid, identity}
    identity
  end

  test "await grants credit", %{connection: connection, transport: transport} do
    run =
      Task.async(fn ->
        {:ok, handle} = AxonCore.run_stream(connection, "echo", "x", credit: 2)
        AxonCore.await(handle)
      end)

    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    for seq <- 1..2, do: FakeTransport.deliver(transport, "chunk", id, %{seq: seq, type: "text", data: "x"})
    assert_receive {:sent, ^transport, ["credit", ^id, _upto]}
    FakeTransport.deliver(transport, "complete", id, %{seq: 3, result: "x"})
    assert {:ok, %Result{result: "x"}} = Task.await(run)
  end

  test "a restarted connection has the same instance", %{connection: connection, transport: transport} do
    assert AxonCore.Connection |> Process.whereis() == nil
    instance = :sys.get_state(connection).session.greeting
    Process.exit(connection, :kill)
    assert_receive {:up, another} when another != transport
    [{_id, again, _type, _modules}] = Supervisor.which_children(ExUnit.fetch_test_supervisor() |> elem(1))
    assert :sys.get_state(again).session.greeting == instance
  end

  test "a request sent before the limit was known ends with an error if it is too large", %{
    connection: connection,
    transport: transport
  } do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", String.duplicate("x", 100))
    FakeTransport.deliver(transport, "pong", "who", %{boot: "one", limits: %{max_body: 50}})
    assert {:error, %Error{type: :invalid_argument, message: message}} = AxonCore.await(handle)
    assert message =~ "at most 50"
  end

  test "an exception in the callback is raised in the caller and cancels the run", %{
    connection: connection,
    transport: transport
  } do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    mine = Error.new(:invalid_argument, "mine")
    me = self()

    {caller, monitor} =
      spawn_monitor(fn ->
        send(me, {:raised, catch_error(AgentProcess.run_stream(agent, "x", each: fn _ -> raise mine end))})
      end)

    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    FakeTransport.deliver(transport, "chunk", id, %{seq: 1, type: "text", data: "x"})
    assert_receive {:sent, ^transport, ["cancel", ^id]}
    FakeTransport.deliver(transport, "error", id, %{error_type: "cancelled"})
    assert_receive {:raised, ^mine}
    assert_receive {:DOWN, ^monitor, :process, ^caller, :normal}
  end

  test "a conversation continues after a caller has exited", %{connection: connection, transport: transport} do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    caller = spawn(fn -> AgentProcess.run(agent, "1") end)
    assert_receive {:sent, ^transport, ["run", one | _]}
    Process.exit(caller, :kill)
    assert_receive {:sent, ^transport, ["cancel", ^one]}
    next = Task.async(fn -> AgentProcess.run(agent, "2", message_history: nil) end)
    assert_receive {:sent, ^transport, ["run", two | _]}
    FakeTransport.deliver(transport, "complete", two, %{seq: 1, messages: [%{a: 1}]})
    assert {:ok, _} = Task.await(next)
    assert AgentProcess.history(agent) == [%{"a" => 1}]
  end

  test "an unknown option is an error that names it", %{connection: connection} do
    assert {:error, %Error{message: message}} = AxonCore.call_tool(connection, "tool", %{}, timeout: 5)
    assert message =~ ":timeout"
  end

  test "telemetry events contain no prompts or error messages", %{connection: connection, transport: transport} do
    {:ok, _} = AxonCore.run_stream(connection, "echo", "a secret")
    assert_receive {:event, [:axon_core, :run, :start], %{system_time: _}, %{kind: "run_stream", id: id}}
    FakeTransport.deliver(transport, "error", id, %{error_type: "overloaded", message: "a secret"})
    assert_receive {:event, [:axon_core, :run, :stop], %{duration: _}, %{outcome: :overloaded} = metadata}
    refute inspect(metadata) =~ "secret"
  end

  test "requests made while disconnected are sent after the reconnect", %{
    connection: connection,
    transport: transport
  } do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "before")
    assert_receive {:sent, ^transport, ["run_stream", before | _]}
    Process.exit(transport, :kill)
    assert_receive {:event, [:axon_core, :connection, :down], _, _}
    {:ok, _} = AxonCore.run_stream(connection, "echo", "meanwhile")
    assert_receive {:up, another}
    assert_receive {:sent, ^another, ["run_stream" | _]}
    assert_receive {:sent, ^another, ["resume", ^before | _]}
    FakeTransport.deliver(another, "complete", before, %{seq: 1, result: "x"})
    assert {:ok, %Result{result: "x"}} = AxonCore.await(handle)
  end

  test "the run of a caller that exits is cancelled, and the connection continues", %{
    connection: connection,
    transport: transport
  } do
    caller = spawn(fn -> AxonCore.run(connection, "echo", "x") end)
    assert_receive {:sent, ^transport, ["run", id | _]}
    Process.exit(caller, :kill)
    assert_receive {:sent, ^transport, ["cancel", ^id]}
    FakeTransport.deliver(transport, "error", id, %{error_type: "cancelled"})
    assert Process.alive?(connection)
  end

  test "runs of a conversation execute in order, and a reset during a run discards its messages", %{
    connection: connection,
    transport: transport
  } do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    {:ok, first} = AgentProcess.run_stream(agent, "1")
    second = Task.async(fn -> AgentProcess.run(agent, "2") end)
    assert_receive {:sent, ^transport, ["run_stream", one | _]}
    refute_receive {:sent, ^transport, ["run", _ | _]}, 50
    FakeTransport.deliver(transport, "complete", one, %{seq: 1, messages: [%{a: 1}]})
    assert {:ok, _} = AxonCore.await(first)
    assert_receive {:sent, ^transport, ["run", two, _, body]}
    assert {:ok, %{"message_history" => [%{"a" => 1}]}} = AxonCore.Codec.unpack(body)
    :ok = AgentProcess.reset(agent)
    FakeTransport.deliver(transport, "complete", two, %{seq: 1, messages: [%{b: 2}]})
    assert {:ok, _} = Task.await(second)
    assert AgentProcess.history(agent) == []
  end

  test "an agent's process survives the exit of its connection", %{connection: connection, transport: transport} do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    {:ok, _} = AgentProcess.run_stream(agent, "1")
    assert_receive {:sent, ^transport, ["run_stream" | _]}
    Process.exit(connection, :kill)
    assert {:error, %Error{type: :no_connection}} = AgentProcess.run(agent, "2")
  end

  test "runs of an exited connection count as ended", %{
    connection: connection,
    transport: transport
  } do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x")
    assert_receive {:sent, ^transport, ["run_stream" | _]}
    :ok = stop_supervised(Connection)
    assert AxonCore.cancel(handle) == {:error, :ended}
    assert AxonCore.steer(handle, "more") == {:error, :ended}
    assert AxonCore.answer(handle, "c", {:ok, 1}) == {:error, :ended}
  end

  for {package, module, transport} <- [
        {"chumak", :chumak, AxonCore.Transport.Chumak},
        {"erlzmq", :erlzmq, AxonCore.Transport.Erlzmq}
      ],
      not Code.ensure_loaded?(module) do
    test "the error about #{inspect(transport)} without its package names the dependency" do
      assert {:error, %Error{type: :invalid_argument, message: message}} =
               Connection.start_link(transport: unquote(transport))

      assert message =~ "#{inspect(unquote(transport))} needs a package that is missing: add {:#{unquote(package)}, "
    end
  end

  test "start_link refuses invalid options" do
    Process.flag(:trap_exit, true)

    for {options, part} <- [
          {[endpoint: "ipc:///tmp/x"], "invalid option :endpoint"},
          {[endpoint: "tcp://127.0.0.1:99999"], "expected tcp://HOST:PORT"},
          {[endpoint: "tcp://127.0.0.1:0"], "expected tcp://HOST:PORT"},
          {[endpoint: "tcp://[::1]:5570"], "expected tcp://HOST:PORT"},
          {[endpoint: ~c"tcp://127.0.0.1:5570"], "expected tcp://HOST:PORT"},
          {[endpont: "tcp://127.0.0.1:5570"], "did you mean :endpoint?"},
          {[transport: :erlzmq], "invalid option :transport"},
          {[identity: "two words"], "invalid option :identity"},
          {[identity: :mine], "invalid option :identity"},
          {[frames: :many], "invalid option :frames"},
          {[transport: AxonCore.UnavailableTransport], "no_such_package"}
        ] do
      options = Keyword.put_new(options, :transport, FakeTransport)
      assert {:error, %Error{message: message}} = Connection.start_link(options)
      assert message =~ part
    end

    for {options, part} <- [
          {[agent: "echo", histroy: false], "did you mean :history?"},
          {[agent: :echo], "expected an AxonCore.Agent"},
          {[agent: [model: "echo"]], "expected an AxonCore.Agent"}
        ] do
      assert {:error, %Error{message: message}} = AgentProcess.start_link([connection: :c] ++ options)
      assert message =~ part
    end

    for {options, part} <- [
          {[agnets: []], "did you mean :agents?"},
          {[agents: [a: [model: "echo"]]], "expected an AxonCore.Agent"},
          {[agents: ["support"]], "expected a keyword list that names each agent"},
          {[daemon: true], "keyword list"},
          {[daemon: [comand: "x"]], "did you mean :command?"},
          {[endpoint: "nowhere"], "expected tcp://HOST:PORT"}
        ] do
      assert {:error, reason} = AxonCore.Supervisor.start_link([name: Wrong] ++ options)
      assert inspect(reason) =~ part
    end
  end
end

defmodule AxonCore.ReportingTransport do
  @moduledoc false
  def required, do: []
  def waiting(_pid), do: 0
  def transmit(_pid, _frames), do: :ok

  def start_link(owner, options) do
    send(:connection_test, {:identity, owner, options[:identity]})
    Agent.start_link(fn -> nil end)
  end
end

defmodule AxonCore.UnprintableError do
  defexception []
  def message(_), do: throw(:unprintable)
end

defmodule AxonCore.UnavailableTransport do
  def required, do: [:no_such_package]
end
