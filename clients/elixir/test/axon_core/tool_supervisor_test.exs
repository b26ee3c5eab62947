defmodule AxonCore.ToolSupervisorTest do
  use ExUnit.Case

  import AxonCore.Waiting
  alias AxonCore.{Connection, FakeTransport}

  setup do
    Process.register(self(), :tool_supervisor_test)
    connection = start_supervised!({Connection, identity: "tool_supervisor_test", transport: FakeTransport})
    assert_receive {:up, transport}
    %{connection: connection, transport: transport}
  end

  # A tool that never returns; with `traps?` it traps exits, so that only `:kill` stops it.
  defp tool(connection, transport, traps? \\ false) do
    test = self()

    function = fn _ ->
      Process.flag(:trap_exit, traps?)
      send(test, {:tool, self()})
      wait(test)
    end

    id = "tool-#{System.unique_integer([:positive])}"
    options = [id: id, tools: [[name: "forever", function: function]]]
    {:ok, _handle} = AxonCore.run_stream(connection, "echo", "x", options)
    FakeTransport.deliver(transport, "tool_call", id, %{seq: 1, call_id: "c", name: "forever", args: %{}})
    assert_receive {:tool, pid}
    {pid, Process.monitor(pid)}
  end

  defp wait(test) do
    receive do
      {:EXIT, _from, reason} ->
        send(test, {:shutdown_requested, reason})
        wait(test)
    end
  end

  defp supervisors, do: DynamicSupervisor.count_children(AxonCore.ToolSupervisors).active

  test "tools are stopped when their connection is killed", %{connection: connection, transport: transport} do
    {_pid, monitor} = tool(connection, transport)
    Process.exit(connection, :kill)
    assert_receive {:DOWN, ^monitor, :process, _, :shutdown}
  end

  test "tools are stopped when their connection stops normally", %{connection: connection, transport: transport} do
    {_pid, monitor} = tool(connection, transport)
    :ok = GenServer.stop(connection, :normal)
    assert_receive {:DOWN, ^monitor, :process, _, :shutdown}
  end

  test "a tool that traps exits is killed after 5 s, and the restarted connection does not wait for it", %{
    connection: connection,
    transport: transport
  } do
    {_pid, monitor} = tool(connection, transport, true)
    Process.exit(connection, :kill)
    assert_receive {:up, _another}
    assert_receive {:shutdown_requested, :shutdown}
    assert_receive {:DOWN, ^monitor, :process, _, :killed}
  end

  test "each connection has its own tool supervisor, which is removed with it", %{connection: connection} do
    before = supervisors()
    {:ok, another} = start_supervised({Connection, identity: "tool_supervisor_test", transport: FakeTransport}, id: :b)
    assert supervisors() == before + 1
    assert :sys.get_state(another).task_supervisor != :sys.get_state(connection).task_supervisor
    :ok = stop_supervised(:b)
    assert eventually(fn -> supervisors() == before end)
  end

  test "a connection exits and is restarted if its tool supervisor exits", %{connection: connection} do
    monitor = Process.monitor(connection)
    Process.exit(:sys.get_state(connection).task_supervisor, :kill)
    assert_receive {:DOWN, ^monitor, :process, _, {:tool_supervisor_ended, _reason}}
    assert_receive {:up, _another}
  end
end
