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

  # A tool that never ends; `traps?` says whether it survives being asked to.
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
    FakeTransport.say(transport, "tool_call", id, %{seq: 1, call_id: "c", name: "forever", args: %{}})
    assert_receive {:tool, pid}
    {pid, Process.monitor(pid)}
  end

  defp wait(test) do
    receive do
      {:EXIT, _from, reason} ->
        send(test, {:asked_to_end, reason})
        wait(test)
    end
  end

  defp supervisors, do: DynamicSupervisor.count_children(AxonCore.ToolSupervisors).active

  test "tools end with their connection, however that ends", %{connection: connection, transport: transport} do
    {_pid, monitor} = tool(connection, transport)
    Process.exit(connection, :kill)
    assert_receive {:DOWN, ^monitor, :process, _, :shutdown}
  end

  test "tools end with a connection that stops in good order", %{connection: connection, transport: transport} do
    {_pid, monitor} = tool(connection, transport)
    :ok = GenServer.stop(connection, :normal)
    assert_receive {:DOWN, ^monitor, :process, _, :shutdown}
  end

  test "a tool that traps exits is asked, then killed; the connection that is started again does not wait for it", %{
    connection: connection,
    transport: transport
  } do
    {_pid, monitor} = tool(connection, transport, true)
    Process.exit(connection, :kill)
    assert_receive {:up, _another}
    assert_receive {:asked_to_end, :shutdown}
    assert_receive {:DOWN, ^monitor, :process, _, :killed}
  end

  test "each connection has its own supervisor, and none is left behind", %{connection: connection} do
    before = supervisors()
    {:ok, another} = start_supervised({Connection, identity: "tool_supervisor_test", transport: FakeTransport}, id: :b)
    assert supervisors() == before + 1
    assert :sys.get_state(another).task_supervisor != :sys.get_state(connection).task_supervisor
    :ok = stop_supervised(:b)
    assert eventually(fn -> supervisors() == before end)
  end

  test "a connection whose tools cannot be run ends, to be started again whole", %{connection: connection} do
    monitor = Process.monitor(connection)
    Process.exit(:sys.get_state(connection).task_supervisor, :kill)
    assert_receive {:DOWN, ^monitor, :process, _, {:tool_supervisor_ended, _reason}}
    assert_receive {:up, _another}
  end
end
