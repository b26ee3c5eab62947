defmodule AxonCore.TestDaemon do
  @moduledoc "A daemon of the tests' own, with the example agents, in a folder of its own."

  @doc "How it is started, or nil."
  def command do
    beside = Path.expand("../../../../.venv/bin/axon-zmq", __DIR__)
    System.get_env("AXON_ZMQ") || if(File.exists?(beside), do: beside)
  end

  @doc "Options of `AxonCore.Daemon`, and where it will listen."
  def options(env \\ %{}) do
    folder = Path.join(System.tmp_dir!(), "axon-ex-#{System.unique_integer([:positive])}-#{System.os_time()}")
    File.mkdir_p!(folder)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(folder) end)
    endpoint = "tcp://127.0.0.1:#{free_port()}"

    few = %{"AXON_RUN_SYNC_WORKERS" => "1", "AXON_RUN_WORKERS" => "1", "AXON_RUN_STREAM_WORKERS" => "1"}
    own = %{"AXON_RUN_DIR" => Path.join(folder, "run"), "AXON_FRONTEND" => endpoint}
    {[command: command(), cd: folder, env: few |> Map.merge(own) |> Map.merge(env)], endpoint}
  end

  @doc "The pid of one of its programs."
  def pid(options, name) do
    env = Enum.to_list(options[:env])
    {told, _code} = System.cmd(options[:command], ["status", "--json"], env: env, stderr_to_stdout: true)
    [_all, pid] = Regex.run(~r/"#{name}":\{"state":"[A-Z]+","pid":(\d+)/, told) || raise "no pid of #{name} in #{told}"
    String.to_integer(pid)
  end

  @doc "SIGKILL; supervisord brings another."
  def kill(options, name) do
    {"", 0} = System.cmd("kill", ["-KILL", Integer.to_string(pid(options, name))])
    :ok
  end

  @doc "A port that is free, and none of those that the system gives to clients: one that connects might get it itself."
  def free_port do
    port = 20_000 + :rand.uniform(10_000)

    case :gen_tcp.listen(port, ip: {127, 0, 0, 1}) do
      {:ok, socket} ->
        :ok = :gen_tcp.close(socket)
        port

      {:error, :eaddrinuse} ->
        free_port()
    end
  end
end
