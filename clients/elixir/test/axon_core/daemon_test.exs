defmodule AxonCore.DaemonTest do
  use ExUnit.Case
  import AxonCore.Waiting
  alias AxonCore.{Daemon, Error, TestDaemon}

  @moduletag :daemon
  @moduletag timeout: 120_000

  @few %{"AXON_RUN_SYNC_WORKERS" => "0", "AXON_RUN_STREAM_WORKERS" => "0"}

  test "the daemon is ready when start_link returns, and leaves no process when it is stopped" do
    {options, endpoint} = TestDaemon.options(@few)
    start_supervised!({Daemon, options})
    pid = TestDaemon.pid(options, "broker")
    connection = start_supervised!({AxonCore.Connection, endpoint: endpoint})
    assert {:ok, %AxonCore.Result{result: "Hello"}} = AxonCore.run(connection, "echo", "Hello")
    :ok = stop_supervised(Daemon)
    refute alive?(pid)
  end

  test "AxonCore.Supervisor starts daemon, connection and agents, and each may be restarted" do
    {options, _endpoint} = TestDaemon.options(@few)
    agents = [echo: "echo", poet: [agent: AxonCore.Agent.new(model: "echo"), history: false]]
    start_supervised!({AxonCore.Supervisor, name: MyAxon, daemon: options, agents: agents})
    echo = AxonCore.Supervisor.agent(MyAxon, :echo)
    assert {:ok, %{result: "Hello"}} = AxonCore.AgentProcess.run(echo, "Hello")
    assert [_, _] = AxonCore.AgentProcess.history(echo)
    agent = Process.whereis(echo)
    broker = TestDaemon.pid(options, "broker")
    [{_id, daemon, _type, _modules}] = for {Daemon, _, _, _} = child <- Supervisor.which_children(MyAxon), do: child
    {:os_pid, sh} = Port.info(:sys.get_state(daemon).port, :os_pid)
    {"", 0} = System.cmd("kill", ["-TERM", Integer.to_string(sh)])
    assert eventually(fn -> not alive?(broker) end)
    assert {:ok, %{result: "Hello again"}} = AxonCore.AgentProcess.run(echo, "Hello again")
    assert {Process.whereis(echo), length(AxonCore.AgentProcess.history(echo))} == {agent, 4}
    Process.exit(Process.whereis(AxonCore.Supervisor.connection(MyAxon)), :kill)
    assert eventually(fn -> match?({:ok, _}, try_to_run(AxonCore.Supervisor.agent(MyAxon, :poet))) end)
  end

  test "the daemon is stopped when the VM is killed" do
    {options, _endpoint} = TestDaemon.options(@few)
    paths = :code.get_path() |> Enum.filter(&(to_string(&1) =~ "axon_core")) |> Enum.flat_map(&["-pa", to_string(&1)])

    start = "{:ok, _} = AxonCore.Daemon.start_link(#{inspect(options)}); IO.puts(:ready); Process.sleep(:infinity)"
    elixir = System.find_executable("elixir")
    vm = Port.open({:spawn_executable, elixir}, [:binary, {:line, 1000}, args: paths ++ ["-e", start]])
    {:os_pid, pid} = Port.info(vm, :os_pid)
    on_exit(fn -> kill(pid) end)
    assert_receive {^vm, {:data, {:eol, "ready"}}}, 60_000
    broker = TestDaemon.pid(options, "broker")
    assert alive?(broker)
    assert {"", 0} = kill(pid)
    assert eventually(fn -> not alive?(broker) end)
  end

  test "an error explains why the daemon does not start" do
    Process.flag(:trap_exit, true)
    assert {:error, %Error{message: message}} = Daemon.start_link(command: "no-such-axon-zmq")
    assert message =~ "no-such-axon-zmq"
    {options, _} = TestDaemon.options(%{"AXON_RUN_WORKERS" => "many"})
    assert {:error, %Error{type: :no_answer, message: message}} = Daemon.start_link(options)
    assert message =~ "AXON_RUN_WORKERS"
  end

  defp try_to_run(agent) do
    AxonCore.AgentProcess.run(agent, "x")
  catch
    :exit, reason -> {:error, reason}
  end

  defp kill(pid), do: System.cmd("kill", ["-KILL", Integer.to_string(pid)], stderr_to_stdout: true)

  defp alive?(pid), do: match?({_, 0}, System.cmd("kill", ["-0", Integer.to_string(pid)], stderr_to_stdout: true))
end
