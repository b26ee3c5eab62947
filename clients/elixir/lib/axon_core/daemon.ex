defmodule AxonCore.Daemon do
  @moduledoc """
  Process that runs the Python daemon as a child of this VM, for development and tests.

      {AxonCore.Daemon, name: MyApp.Daemon, command: ".venv/bin/axon-zmq", env: %{"AXON_AGENTS" => "support=my_agents:support"}}

  It runs `axon-zmq serve`, which is a supervisord with the broker and the workers. Children that follow it in a
  supervision tree are started only when the daemon is ready. When this process or the whole VM ends, for whatever
  reason, the daemon is stopped: its workers first finish the runs that they execute.

  #{AxonCore.Options.docs(:daemon)}

  In production, run the daemon separately, for example under systemd or in its own container. The daemon and the
  application can then be restarted independently.
  """

  use GenServer
  require Logger

  alias AxonCore.{Error, Options}

  # The port closes the shell's stdin even when the VM is killed. The shell reads stdin until it is closed, and then
  # stops the daemon, as it does on SIGTERM. The shell waits for the daemon and exits with the daemon's exit code.
  # `wait` is in a loop because it returns early when the trap runs.
  @wrapper """
  exec 3<&0
  "$@" </dev/null &
  pid=$!
  trap 'kill -TERM $pid 2>/dev/null' TERM
  (trap - TERM; while read -r _; do :; done <&3; kill -TERM $pid) >/dev/null 2>&1 &
  watch=$!
  while kill -0 $pid 2>/dev/null; do wait $pid; code=$?; done
  kill $watch 2>/dev/null
  exit $code
  """

  # Time that the daemon may take to stop after it has waited `AXON_DRAIN_SECONDS` for its runs.
  @stop_margin_ms 30_000

  @doc false
  def child_spec(options) do
    options = Options.validate!(options, :daemon)
    drain = env(options)["AXON_DRAIN_SECONDS"] || System.get_env("AXON_DRAIN_SECONDS", "60")
    # The daemon itself reports a value that is not a number.
    seconds = with {seconds, _rest} <- Float.parse(drain), do: seconds, else: (:error -> 60)
    shutdown = @stop_margin_ms + trunc(1_000 * seconds)
    %{id: Keyword.get(options, :name, __MODULE__), start: {__MODULE__, :start_link, [options]}, shutdown: shutdown}
  end

  @doc false
  @spec env(keyword) :: %{String.t() => String.t()}
  def env(options) do
    for {name, value} <- Keyword.get(options, :env, []), into: %{}, do: {to_string(name), to_string(value)}
  end

  @doc "Starts the daemon and returns when it is ready."
  @spec start_link(keyword) :: GenServer.on_start()
  def start_link(options \\ []) do
    with {:ok, options} <- Options.validate(options, :daemon) do
      # `init/1` reports a daemon that is not ready in time, so GenServer's own timeout must be longer.
      timeout = options[:timeout] + 5_000
      GenServer.start_link(__MODULE__, options, [timeout: timeout] ++ Keyword.take(options, [:name]))
    end
  end

  @doc "Returns the endpoint of the daemon's frontend."
  @spec endpoint(GenServer.server()) :: String.t()
  def endpoint(daemon), do: GenServer.call(daemon, :endpoint)

  @impl true
  def init(options) do
    # `terminate/2` must run when the supervisor stops this process, to stop the daemon.
    Process.flag(:trap_exit, true)
    command = options[:command]

    case {System.find_executable("sh"), executable(command)} do
      {nil, _command} ->
        {:stop, Error.new(:invalid_argument, "sh not found on the PATH; AxonCore.Daemon needs it to stop the daemon")}

      {_sh, nil} ->
        text = "command #{inspect(command)} not found; run `pip install axon-zmq`, or set :command to its path"
        {:stop, Error.new(:invalid_argument, text)}

      {sh, command} ->
        open(sh, command, options)
    end
  end

  defp executable(command),
    do: if(File.regular?(command), do: Path.expand(command), else: System.find_executable(command))

  defp open(sh, command, options) do
    env = for {name, value} <- env(options), do: {to_charlist(name), to_charlist(value)}

    settings = [
      args: ["-c", @wrapper, "axon-zmq", command, "serve"],
      env: env,
      cd: Keyword.get(options, :cd, File.cwd!())
    ]

    port = Port.open({:spawn_executable, sh}, [:binary, :exit_status, :stderr_to_stdout, {:line, 4096} | settings])
    deadline = System.monotonic_time(:millisecond) + options[:timeout]
    await_ready(%{port: port, output: []}, deadline, options[:timeout])
  end

  # The last lines of output become the error if the daemon exits before it is ready.
  defp await_ready(%{port: port} = state, deadline, timeout) do
    receive do
      {^port, {:data, {_end, "serving on " <> served = line}}} ->
        Logger.info("axon-zmq: #{line}")
        {:ok, Map.put(state, :endpoint, served |> String.split() |> hd())}

      {^port, {:data, {_end, line}}} ->
        await_ready(%{state | output: Enum.take([line | state.output], 20)}, deadline, timeout)

      {^port, {:exit_status, code}} ->
        output = state.output |> Enum.reverse() |> Enum.join("\n")
        {:stop, Error.new(:no_answer, "the daemon exited with code #{code} before it was ready:\n#{output}")}

      {:EXIT, _parent, reason} ->
        {:stop, reason}
    after
      max(0, deadline - System.monotonic_time(:millisecond)) ->
        Port.close(port)
        text = "the daemon was not ready after #{timeout} ms (option :timeout); look at its log, or raise the timeout"
        {:stop, Error.new(:no_answer, text)}
    end
  end

  @impl true
  def handle_call(:endpoint, _from, state), do: {:reply, state.endpoint, state}

  @impl true
  def handle_info({port, {:data, {_end, line}}}, %{port: port} = state) do
    Logger.debug("axon-zmq: #{line}")
    {:noreply, state}
  end

  def handle_info({port, {:exit_status, code}}, %{port: port} = state) do
    {:stop, Error.new(:no_answer, "the daemon exited with code #{code}"), state}
  end

  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{port: port}) do
    with {:os_pid, pid} <- Port.info(port, :os_pid) do
      {_output, _code} = System.cmd("kill", ["-TERM", Integer.to_string(pid)])
      await_end(port)
    end
  end

  defp await_end(port) do
    receive do
      {^port, {:exit_status, _code}} -> :ok
      {^port, {:data, _line}} -> await_end(port)
    end
  end
end
