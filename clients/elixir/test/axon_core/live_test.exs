for {transport, tag} <- [{AxonCore.Transport.Chumak, :chumak}, {AxonCore.Transport.Erlzmq, :erlzmq}] do
  defmodule Module.concat(transport, "LiveTest") do
    use ExUnit.Case
    import AxonCore.Waiting

    alias AxonCore.{Agent, AgentProcess, Chunk, Connection, Daemon, Error, Result, TestDaemon}

    @moduletag :daemon
    @moduletag tag
    @moduletag timeout: 120_000
    @transport transport

    setup_all do
      {options, endpoint} = TestDaemon.options()
      daemon = start_supervised!({Daemon, options})
      %{endpoint: endpoint, daemon: daemon, options: options}
    end

    setup %{endpoint: endpoint, test: test} do
      identity = "#{inspect(@transport)}-#{:erlang.phash2(test)}"
      connection = start_supervised!({Connection, endpoint: endpoint, identity: identity, transport: @transport})
      %{connection: connection}
    end

    defp script(calls),
      do: "[" <> Enum.map_join(calls, ",", fn {name, args} -> ~s({"name":"#{name}","args":#{args}}) end) <> "]"

    defp speaker(options), do: Agent.new(model: "synthetic:#{options}")

    # --- requests ----------------------------------------------------------------------------------

    test "each mode returns a result", %{connection: connection} do
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")

      for run <- [&AgentProcess.run/2, &AgentProcess.run_sync/2] do
        assert {:ok, %Result{result: "Hello", usage: %{"requests" => 1}, messages: [_, _]}} = run.(agent, "Hello")
      end
    end

    test "a failed request returns an error", %{connection: connection} do
      assert {:error, %Error{type: :unknown_agent, retryable?: false}} = AxonCore.run(connection, "ecko", "x")
      assert {:error, %Error{type: :invalid_argument}} = AxonCore.run(connection, "echo", <<255>>)

      assert {:error, %Error{type: :invalid_argument, message: message}} =
               AxonCore.run(connection, "echo", "x", timeout: 5)

      assert message =~ ":timeout"
      late = AxonCore.run(connection, speaker("tokens=9,delay_ms=2000"), "x", timeout_ms: 100)
      assert {:error, %Error{type: :deadline_exceeded, retryable?: true}} = late
    end

    test "a conversation continues in order, and can be reset", %{connection: connection} do
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
      answers = 1..3 |> Enum.map(&Task.async(fn -> AgentProcess.run(agent, "#{&1}") end)) |> Task.await_many()
      assert Enum.all?(answers, &match?({:ok, _}, &1))
      assert length(AgentProcess.history(agent)) == 6
      {:error, _} = AgentProcess.run(agent, "x", model: "no such:model")
      assert length(AgentProcess.history(agent)) == 6
      :ok = AgentProcess.reset(agent)
      assert AgentProcess.history(agent) == []
      {:ok, alone} = AgentProcess.start_link(connection: connection, agent: "echo", history: false)
      {:ok, _} = AgentProcess.run(alone, "1")
      assert AgentProcess.history(alone) == []
    end

    test "structured output is cast to a struct", %{connection: connection} do
      agent = Agent.new(model: "echo", retries: 0, output: AxonCore.Fixtures.Place)

      assert {:ok, %Result{result: %AxonCore.Fixtures.Place{name: "Oslo", kind: :town}}} =
               AxonCore.run(connection, agent, ~s({"name": "Oslo", "kind": "town"}))

      assert {:error, %Error{type: :invalid_output}} = AxonCore.run(connection, agent, "Oslo")
    end

    test "bytes and times in messages are unchanged", %{connection: connection} do
      image = %{kind: "binary", media_type: "image/png", data: AxonCore.Codec.bytes(<<0x89, "PNG", 0xFF>>)}
      {:ok, first} = AxonCore.run(connection, "echo", ["Keep this: ", image])
      {:ok, second} = AxonCore.run(connection, "echo", "And now?", message_history: first.messages)
      assert second.result == "And now?"
      [%{"parts" => [%{"content" => [_text, kept], "timestamp" => %DateTime{}}]} | _] = first.messages
      assert kept["data"].data == <<0x89, "PNG", 0xFF>>
    end

    test "describe, ping, a Python tool without a model", %{connection: connection} do
      assert {:ok, %{"agents" => %{"weather" => %{"tools" => [_]}}}} = AxonCore.describe(connection, "weather")
      assert {:ok, %{"protocol" => 1, "boot" => _}} = AxonCore.ping(connection)
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "weather")

      assert {:ok, %Result{result: %{"celsius" => -3.0}}} =
               AgentProcess.call_tool(agent, "temperature", %{place: "Oslo"})

      assert {:error, %Error{type: :unknown_tool}} = AxonCore.call_tool(connection, "no_such_tool")
    end

    test "messages arrive in single frames with frames: :single", %{endpoint: endpoint} do
      options = [endpoint: endpoint, identity: "single-#{inspect(@transport)}", transport: @transport, frames: :single]
      connection = start_supervised!({Connection, options}, id: :single)
      assert {:ok, %Result{result: "Hello"}} = AxonCore.run(connection, "echo", "Hello")

      assert [%Chunk{data: "one"}, %Chunk{data: " two"}, %Result{}] =
               connection |> AxonCore.stream("echo", "one two") |> Enum.to_list()
    end

    # --- streams -----------------------------------------------------------------------------------

    test "messages to a process, a lazy stream, a callback", %{connection: connection} do
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
      {:ok, handle} = AgentProcess.run_stream(agent, "one two")
      ref = handle.ref
      assert_receive {:axon, ^ref, {:chunk, %Chunk{type: :text, data: "one", seq: 1}}}
      assert_receive {:axon, ^ref, {:chunk, %Chunk{data: " two"}}}
      assert_receive {:axon, ^ref, {:complete, %Result{result: "one two"}}}

      assert [%Chunk{data: "three"}, %Chunk{data: " four"}, %Result{result: "three four"}] =
               agent |> AgentProcess.stream("three four") |> Enum.to_list()

      me = self()
      assert {:ok, %Result{result: "five"}} = AgentProcess.run_stream(agent, "five", each: &send(me, {:each, &1}))
      assert_received {:each, %Chunk{data: "five"}}
      assert length(AgentProcess.history(agent)) == 6
    end

    test "a lazy stream that fails raises", %{connection: connection} do
      assert_raise Error, ~r/unknown_agent/, fn -> connection |> AxonCore.stream("ecko", "x") |> Enum.to_list() end
    end

    test "halting a stream cancels the run and leaves no messages in the mailbox", %{connection: connection} do
      [first] = connection |> AxonCore.stream(speaker("tokens=1000,delay_ms=5"), "x") |> Enum.take(1)
      assert %Chunk{seq: 1} = first
      assert eventually(fn -> :sys.get_state(connection).session.runs == %{} end)
      assert {:message_queue_len, 0} = Process.info(self(), :message_queue_len)
    end

    test "a slow reader makes the model wait", %{connection: connection} do
      stream = AxonCore.stream(connection, speaker("tokens=4000,delay_ms=0,size=100"), "x", credit: 4)
      sizes = for %Chunk{data: data} <- stream |> Stream.each(fn _ -> Process.sleep(1) end), do: byte_size(data)
      assert Enum.sum(sizes) == 400_000
      assert length(sizes) < 4000, "chunks were not merged"
    end

    test "200 concurrent streams are each in order", %{connection: connection} do
      texts =
        1..200
        |> Enum.map(fn _ ->
          Task.async(fn ->
            connection |> AxonCore.stream(speaker("tokens=50,delay_ms=10,size=5"), "x") |> Enum.to_list()
          end)
        end)
        |> Task.await_many(60_000)

      whole = Enum.map_join(0..49, &(&1 |> Integer.to_string() |> String.pad_leading(4, "0") |> Kernel.<>(" ")))

      for events <- texts do
        {chunks, [%Result{result: result}]} = Enum.split(events, -1)
        # A worker whose event loop is late merges deltas into one chunk.
        assert Enum.map(chunks, & &1.seq) == Enum.to_list(1..length(chunks))
        assert Enum.map_join(chunks, & &1.data) == whole
        assert result == whole
      end
    end

    # --- cancellation ------------------------------------------------------------------------------

    test "a cancelled run ends with its partial answer", %{connection: connection} do
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: speaker("tokens=100,delay_ms=500"))
      {:ok, handle} = AgentProcess.run_stream(agent, "x")
      ref = handle.ref
      assert_receive {:axon, ^ref, {:chunk, _}}
      :ok = AgentProcess.cancel(agent, handle)

      assert {:error, %Error{type: :cancelled, details: %{"partial" => %{"text" => "0000" <> _}}}} =
               AxonCore.await(handle)

      assert AgentProcess.cancel(agent, handle) == {:error, :ended}
      refute_receive {:axon, ^ref, _}, 50
    end

    test "the run of a caller that exits is cancelled", %{connection: connection} do
      me = self()

      caller =
        spawn(fn ->
          {:ok, _} = AxonCore.run_stream(connection, speaker("tokens=1000,delay_ms=100"), "x")
          send(me, :started)
          Process.sleep(:infinity)
        end)

      assert_receive :started
      Process.exit(caller, :kill)
      assert eventually(fn -> :sys.get_state(connection).session.runs == %{} end)
    end

    test "await exits after its timeout, and when the connection exits", %{connection: connection} do
      {:ok, handle} = AxonCore.run_stream(connection, speaker("tokens=10,delay_ms=1000"), "x")
      assert {:timeout, _} = catch_exit(AxonCore.await(handle, 50))
      Process.exit(connection, :kill)
      assert {reason, {AxonCore, :await, _}} = catch_exit(AxonCore.await(handle))
      assert reason in [:killed, :noproc]
    end

    # --- tools -------------------------------------------------------------------------------------

    test "tools run concurrently in separate tasks", %{connection: connection} do
      me = self()

      meet = [
        name: "meet",
        parameters: %{type: "object"},
        function: fn _ -> send(me, {:here, self()}) && receive(do: (:go -> {:ok, 1})) end
      ]

      run =
        Task.async(fn ->
          AxonCore.run(connection, Agent.new(model: "tools", tools: [meet]), script(for(_ <- 1..3, do: {"meet", "{}"})))
        end)

      here = for _ <- 1..3, do: receive(do: ({:here, pid} -> pid))
      Enum.each(here, &send(&1, :go))
      assert {:ok, %Result{result: "[1,1,1]"}} = Task.await(run)
    end

    test "failures of tools are reported to the model and affect nothing else", %{connection: connection} do
      wrong = %{
        "fails" => {fn _ -> {:error, "no paper"} end, "no paper"},
        "raises" => {fn _ -> raise "ouch" end, "ouch"},
        "exits" => {fn _ -> exit(:tired) end, ":tired"},
        "throws" => {fn _ -> throw(:ball) end, ":ball"},
        "killed" => {fn _ -> Process.exit(self(), :kill) end, "killed"},
        "bare" => {fn _ -> 5 end, "invalid return value of a tool"},
        "unpackable" => {fn _ -> {:ok, self()} end, "msgpack cannot represent"},
        "huge" => {fn _ -> {:ok, String.duplicate("x", 16 * 1024 * 1024)} end, "result too large"},
        "misfit" => {fn _ -> {:ok, "five"} end, "is not of type"}
      }

      tools =
        for {name, {function, _}} <- wrong,
            do: [name: name, parameters: %{type: "object"}, returns: :number, function: function]

      good = [name: "good", parameters: %{type: "object"}, function: fn _ -> {:ok, 7, metadata: %{kept: true}} end]
      agent = Agent.new(model: "tools", tools: [good | tools])

      {:ok, result} =
        AxonCore.run(connection, agent, script(for(name <- ["good" | Map.keys(wrong)], do: {name, "{}"})), retries: 5)

      reported =
        for %{"parts" => parts} <- result.messages,
            %{"tool_name" => name, "content" => content} <- parts,
            into: %{},
            do: {name, content}

      assert reported["good"] == 7
      for {name, {_, part}} <- wrong, do: assert(inspect(reported[name]) =~ part, name)
      assert Process.alive?(connection)
      assert :sys.get_state(connection).tasks == %{}
    end

    test "a tool is stopped when the daemon no longer waits for its answer", %{connection: connection} do
      me = self()

      forever = fn more ->
        [
          name: "forever",
          parameters: %{type: "object"},
          function: fn _ -> send(me, {:here, self()}) && Process.sleep(:infinity) end
        ] ++ more
      end

      stopped = fn because ->
        assert_receive {:here, pid}
        monitor = Process.monitor(pid)
        because.()
        assert_receive {:DOWN, ^monitor, :process, ^pid, :shutdown}
      end

      late = Agent.new(model: "tools", tools: [forever.(timeout_ms: 300)])
      {:ok, handle} = AxonCore.run_stream(connection, late, script([{"forever", "{}"}]))
      stopped.(fn -> :ok end)
      assert {:ok, _} = AxonCore.await(handle)

      {:ok, handle} =
        AxonCore.run_stream(connection, Agent.new(model: "tools", tools: [forever.([])]), script([{"forever", "{}"}]))

      stopped.(fn -> AxonCore.cancel(handle) end)
      assert {:error, %Error{type: :cancelled}} = AxonCore.await(handle)
    end

    test "the caller answers tool calls, steers the run and receives refusals", %{connection: connection} do
      ask = [name: "ask", parameters: [question: :string], returns: :string]

      {:ok, handle} =
        AxonCore.run_stream(
          connection,
          Agent.new(model: "tools", tools: [ask]),
          script([{"ask", ~s({"question":"Window?"})}])
        )

      ref = handle.ref

      assert_receive {:axon, ^ref, {:tool_call, %{name: "ask", call_id: call_id, args: %{"question" => "Window?"}}}},
                     5_000

      :ok = AxonCore.answer(handle, call_id, {:ok, 5})
      assert_receive {:axon, ^ref, {:refused, %Error{type: :invalid_request}}}
      :ok = AxonCore.steer(handle, "It is urgent.")
      :ok = AxonCore.answer(handle, call_id, {:ok, "aisle"})
      assert {:ok, %Result{result: ~s(["aisle",{"heard":"It is urgent."}])}} = AxonCore.await(handle)
      assert AxonCore.steer(handle, "And cheap.") == {:error, :ended}
    end

    test "a run with approvals ends, and a later run continues", %{connection: connection} do
      pay = [name: "pay", parameters: [euros: :integer], approval: true, function: &{:ok, "paid #{&1["euros"]}"}]
      {:ok, agent} = AgentProcess.start_link(connection: connection, agent: Agent.new(model: "tools", tools: [pay]))

      {:ok, %Result{deferred: %{"approvals" => calls}}} =
        AgentProcess.run(agent, script([{"pay", ~s({"euros":12})}, {"pay", ~s({"euros":9000})}]))

      decide = &if &1["args"]["euros"] < 100, do: true, else: %{kind: "tool-denied", message: "too much"}
      decisions = %{approvals: Map.new(calls, &{&1["call_id"], decide.(&1)})}

      assert {:ok, %Result{result: ~s(["paid 12","too much"])}} =
               AgentProcess.run(agent, nil, deferred_tool_results: decisions)
    end

    test "log records of the Python code arrive", %{connection: connection} do
      {:ok, handle} = AxonCore.run_stream(connection, "weather", "Oslo?", log: :debug)
      ref = handle.ref
      assert_receive {:axon, ^ref, {:log, %{"level" => "debug", "message" => "read the thermometer of Oslo"}}}
      assert {:ok, _} = AxonCore.await(handle)
    end

    # --- failures ----------------------------------------------------------------------------------

    test "a stream continues after the broker was killed, with each chunk once", %{
      connection: connection,
      options: options
    } do
      {:ok, handle} = AxonCore.run_stream(connection, speaker("tokens=60,delay_ms=100,size=5"), "x")
      ref = handle.ref
      assert_receive {:axon, ^ref, {:chunk, %Chunk{seq: 3}}}
      TestDaemon.kill(options, "broker")
      assert {chunks, {:complete, %Result{result: text}}} = collect(ref, [])
      assert Enum.map(chunks, & &1.seq) == [1, 2 | Enum.to_list(4..60)]
      assert length(String.split(text)) == 60
    end

    test "a tool is executed once although the broker is killed, and its answer is not lost", %{
      connection: connection,
      options: options
    } do
      me = self()

      slow = [
        name: "slow",
        parameters: %{type: "object"},
        function: fn _ -> send(me, {:runs, self()}) && receive(do: (:go -> {:ok, 7})) end
      ]

      run =
        Task.async(fn ->
          AxonCore.run(connection, Agent.new(model: "tools", tools: [slow]), script([{"slow", "{}"}]))
        end)

      assert_receive {:runs, pid}
      TestDaemon.kill(options, "broker")
      send(pid, :go)
      assert {:ok, %Result{result: "[7]"}} = Task.await(run, 60_000)
      refute_received {:runs, _}
    end

    test "a worker that dies ends its runs", %{connection: connection, options: options} do
      {:ok, handle} = AxonCore.run_stream(connection, speaker("tokens=100,delay_ms=100"), "x")
      ref = handle.ref
      assert_receive {:axon, ^ref, {:chunk, _}}
      TestDaemon.kill(options, "run_stream-1")
      assert {:error, %Error{type: :worker_lost, retryable?: true}} = AxonCore.await(handle)
      assert {:ok, _} = AxonCore.run(connection, "echo", "others")

      assert eventually(fn ->
               match?({:ok, %{"modes" => %{"run_stream" => %{"workers" => 1}}}}, AxonCore.ping(connection))
             end)
    end

    test "a stream continues after the transport was killed", %{connection: connection} do
      {:ok, handle} = AxonCore.run_stream(connection, speaker("tokens=30,delay_ms=100,size=5"), "x")
      ref = handle.ref
      assert_receive {:axon, ^ref, {:chunk, %Chunk{seq: 3}}}
      Process.exit(:sys.get_state(connection).transport, :kill)
      assert {chunks, {:complete, _}} = collect(ref, [])
      assert Enum.map(chunks, & &1.seq) == [1, 2 | Enum.to_list(4..30)]
    end

    test "a second process with the same identity is logged", context do
      %{connection: connection, endpoint: endpoint, options: options} = context
      python = Path.join(Path.dirname(options[:command]), "python")
      identity = :sys.get_state(connection).options[:identity]

      script =
        "from axon_zmq import Client; Client(#{inspect(endpoint)}, identity=#{inspect(identity)}).__enter__().ping()"

      log =
        ExUnit.CaptureLog.capture_log(fn ->
          assert {:ok, _} = AxonCore.ping(connection)
          assert {_, 0} = System.cmd(python, ["-c", script])
          assert eventually(fn -> match?({:ok, %{"shared" => true}}, AxonCore.ping(connection)) end)
          assert :sys.get_state(connection).session.shared?
        end)

      assert log =~ "another process uses the identity"
    end

    test "a request sent before the daemon is started is answered later" do
      {options, endpoint} = TestDaemon.options(%{"AXON_RUN_SYNC_WORKERS" => "0", "AXON_RUN_STREAM_WORKERS" => "0"})
      early = start_supervised!({Connection, endpoint: endpoint, identity: "early", transport: @transport}, id: :early)
      run = Task.async(fn -> AxonCore.run(early, "echo", "Hello") end)
      start_supervised!({Daemon, options}, id: :late)
      assert {:ok, %Result{result: "Hello"}} = Task.await(run, 60_000)
    end

    defp collect(ref, chunks) do
      receive do
        {:axon, ^ref, {:chunk, chunk}} -> collect(ref, [chunk | chunks])
        {:axon, ^ref, {ended, _} = event} when ended in [:complete, :error] -> {Enum.reverse(chunks), event}
        {:axon, ^ref, _other} -> collect(ref, chunks)
      after
        60_000 -> flunk("no last message after #{length(chunks)} chunks")
      end
    end
  end
end
