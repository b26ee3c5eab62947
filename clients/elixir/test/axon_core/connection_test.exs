unless Code.ensure_loaded?(:telemetry) do
  defmodule :telemetry do
    def execute(event, measurements, metadata) do
      test = Process.whereis(:connection_test)
      if test, do: send(test, {:event, event, measurements, metadata})
    end
  end
end

defmodule AxonCore.ConnectionTest do
  use ExUnit.Case

  alias AxonCore.{AgentProcess, Chunk, Connection, Error, FakeTransport, Result}

  setup do
    Process.register(self(), :connection_test)
    connection = start_supervised!({Connection, identity: "connection_test", transport: FakeTransport})
    assert_receive {:up, transport}
    assert_receive {:sent, ^transport, ["ping" | _]}
    %{connection: connection, transport: transport}
  end

  test "a request, its messages and its end", %{connection: connection, transport: transport} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x", timeout_ms: 5)
    assert_receive {:sent, ^transport, ["run_stream", id, _header, _body]}
    ref = handle.ref
    FakeTransport.say(transport, "chunk", id, %{seq: 1, type: "text", data: "x"})
    assert_receive {:axon, ^ref, {:chunk, %Chunk{data: "x"}}}
    FakeTransport.say(transport, "complete", id, %{seq: 2, result: "x"})
    assert_receive {:axon, ^ref, {:complete, %Result{result: "x"}}}
    assert AxonCore.cancel(handle) == {:error, :ended}
  end

  test "what is wrong is its caller's alone", %{connection: connection, transport: transport} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x")
    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    assert_raise Error, fn -> AxonCore.steer(handle, <<255>>) end
    assert_raise Error, fn -> AxonCore.answer(handle, {:no, :id}, {:ok, 1}) end

    for id <- [123, "", String.duplicate("x", 65)],
        do: assert({:error, _} = AxonCore.run(connection, "echo", "x", id: id))

    assert {:error, %Error{type: :invalid_argument}} = AxonCore.run_stream(connection, "echo", "x", to: :nobody)
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    assert {:error, %Error{type: :invalid_argument}} = AgentProcess.run(agent, "x", timeout_ms: :infinity)
    FakeTransport.say(transport, "error", id, %{seq: 1, error_type: "unknown_request", details: 5})
    assert {:error, %Error{}} = AxonCore.await(handle)
    assert Process.alive?(connection)
  end

  test "a tool that raises what is no text has failed, and nothing else", %{
    connection: connection,
    transport: transport
  } do
    bad = [name: "bad", parameters: %{}, function: fn _ -> raise <<255>> end]
    {:ok, handle} = AxonCore.run_stream(connection, AxonCore.Agent.new(model: "tools", tools: [bad]), "x")
    assert_receive {:sent, ^transport, ["run_stream", id | _]}
    FakeTransport.say(transport, "tool_call", id, %{seq: 1, call_id: "c", name: "bad", args: %{}})
    assert_receive {:sent, ^transport, ["tool_result", ^id, _, body]}
    assert {:ok, %{"error" => %{"retry" => false}}} = AxonCore.Codec.unpack(body)
    FakeTransport.say(transport, "complete", id, %{seq: 2, result: "x"})
    assert {:ok, _} = AxonCore.await(handle)
  end

  test "only who hears of a run awaits its end", %{connection: connection} do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "x", to: spawn(fn -> Process.sleep(:infinity) end))
    assert_raise ArgumentError, ~r/only it can await/, fn -> AxonCore.await(handle) end
  end

  test "events are told, without what is said", %{connection: connection, transport: transport} do
    {:ok, _} = AxonCore.run_stream(connection, "echo", "a secret")
    assert_receive {:event, [:axon_core, :run, :start], %{system_time: _}, %{kind: "run_stream", id: id}}
    FakeTransport.say(transport, "error", id, %{error_type: "overloaded", message: "a secret"})
    assert_receive {:event, [:axon_core, :run, :stop], %{duration: _}, %{outcome: :overloaded} = metadata}
    refute inspect(metadata) =~ "secret"
  end

  test "what is sent while there is no connection is sent when there is", %{
    connection: connection,
    transport: transport
  } do
    {:ok, handle} = AxonCore.run_stream(connection, "echo", "before")
    assert_receive {:sent, ^transport, ["run_stream", before | _]}
    Process.exit(transport, :kill)
    assert_receive {:event, [:axon_core, :connection, :down], _, _}
    {:ok, _} = AxonCore.run_stream(connection, "echo", "meanwhile")
    assert_receive {:up, another}, 2_000
    assert_receive {:sent, ^another, ["run_stream" | _]}
    assert_receive {:sent, ^another, ["resume", ^before | _]}
    FakeTransport.say(another, "complete", before, %{seq: 1, result: "x"})
    assert {:ok, %Result{result: "x"}} = AxonCore.await(handle)
  end

  test "who dies has his run cancelled, and the connection lives on", %{connection: connection, transport: transport} do
    caller = spawn(fn -> AxonCore.run(connection, "echo", "x") end)
    assert_receive {:sent, ^transport, ["run", id | _]}
    Process.exit(caller, :kill)
    assert_receive {:sent, ^transport, ["cancel", ^id]}
    FakeTransport.say(transport, "error", id, %{error_type: "cancelled"})
    assert Process.alive?(connection)
  end

  test "runs of a conversation follow one another; a reset meanwhile stays one", %{
    connection: connection,
    transport: transport
  } do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    {:ok, first} = AgentProcess.run_stream(agent, "1")
    second = Task.async(fn -> AgentProcess.run(agent, "2") end)
    assert_receive {:sent, ^transport, ["run_stream", one | _]}
    refute_receive {:sent, ^transport, ["run", _ | _]}, 50
    FakeTransport.say(transport, "complete", one, %{seq: 1, messages: [%{a: 1}]})
    assert {:ok, _} = AxonCore.await(first)
    assert_receive {:sent, ^transport, ["run", two, _, body]}
    assert {:ok, %{"message_history" => [%{"a" => 1}]}} = AxonCore.Codec.unpack(body)
    :ok = AgentProcess.reset(agent)
    FakeTransport.say(transport, "complete", two, %{seq: 1, messages: [%{b: 2}]})
    assert {:ok, _} = Task.await(second)
    assert AgentProcess.history(agent) == []
  end

  test "a connection that dies takes no agent with it", %{connection: connection, transport: transport} do
    {:ok, agent} = AgentProcess.start_link(connection: connection, agent: "echo")
    {:ok, _} = AgentProcess.run_stream(agent, "1")
    assert_receive {:sent, ^transport, ["run_stream" | _]}
    Process.exit(connection, :kill)
    assert {:error, %Error{type: :no_answer}} = AgentProcess.run(agent, "2")
  end

  test "options that make no sense are told at the start" do
    Process.flag(:trap_exit, true)

    for {options, part} <- [
          {[endpoint: "ipc:///tmp/x"], "no endpoint"},
          {[identity: "two words"], "an identity"},
          {[transport: AxonCore.NeedsMore], "no_such_package"}
        ] do
      options = Keyword.put_new(options, :transport, FakeTransport)
      assert {:error, %Error{message: message}} = Connection.start_link(options)
      assert message =~ part
    end
  end
end

defmodule AxonCore.NeedsMore do
  def required, do: [:no_such_package]
end
