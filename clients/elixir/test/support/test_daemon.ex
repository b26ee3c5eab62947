defmodule AxonCore.TestDaemon do
  @moduledoc "Daemon for tests, with the example agents, in a temporary folder."

  @doc "Returns the path of the command `axon-zmq`, or nil if it is not installed."
  def command do
    installed = Path.expand("../../../../.venv/bin/axon-zmq", __DIR__)
    System.get_env("AXON_ZMQ") || if(File.exists?(installed), do: installed)
  end

  @doc "Returns options for `AxonCore.Daemon`, and the endpoint at which it will listen."
  def options(env \\ %{}) do
    folder = Path.join(System.tmp_dir!(), "axon-ex-#{System.unique_integer([:positive])}-#{System.os_time()}")
    File.mkdir_p!(folder)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(folder) end)
    endpoint = "tcp://127.0.0.1:#{free_port()}"

    workers = %{"AXON_RUN_SYNC_WORKERS" => "1", "AXON_RUN_WORKERS" => "1", "AXON_RUN_STREAM_WORKERS" => "1"}
    place = %{"AXON_RUN_DIR" => Path.join(folder, "run"), "AXON_FRONTEND" => endpoint}
    {[command: command(), cd: folder, env: workers |> Map.merge(place) |> Map.merge(env)], endpoint}
  end

  @doc "Returns the process id of one of the daemon's programs."
  def pid(options, name) do
    env = Enum.to_list(options[:env])
    {status, _code} = System.cmd(options[:command], ["status", "--json"], env: env, stderr_to_stdout: true)
    match = Regex.run(~r/"#{name}":\{"state":"[A-Z]+","pid":(\d+)/, status)
    [_all, pid] = match || raise "no pid of #{name} in #{status}"
    String.to_integer(pid)
  end

  @doc "Kills one of the daemon's programs with SIGKILL; supervisord restarts it."
  def kill(options, name) do
    {"", 0} = System.cmd("kill", ["-KILL", Integer.to_string(pid(options, name))])
    :ok
  end

  @doc """
  Returns a free port below the range of ephemeral ports.

  A client that connects to an unused ephemeral port may be given that same port and then connect to itself.
  """
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
