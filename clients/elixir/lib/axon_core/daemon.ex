defmodule AxonCore.Daemon do
  @moduledoc """
  The Python daemon under a port, for those who want `mix` to start everything.

      {AxonCore.Daemon, name: MyApp.Daemon, command: ".venv/bin/axon-zmq", env: %{"AXON_AGENTS" => "support=my_agents:support"}}

  It runs `axon-zmq serve`: a supervisord with the broker and the workers. What stands before it in a supervision tree is
  started without waiting for it; what stands behind it finds it ready. When this process ends, or the whole VM with it,
  however that happens, the daemon ends too: workers finish what they have first.

  #{AxonCore.Options.docs(:daemon)}

  In production, run it beside the application, under systemd or in a container of its own: it can then be restarted
  without the application, and the application without it.
  """

  use GenServer
  require Logger

  alias AxonCore.{Error, Options}

  # The port's stdin closes with the VM: then the daemon is told to stop, as it is by SIGTERM; and it is waited for.
  @guard """
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

  # Milliseconds over `AXON_DRAIN_SECONDS` that it may take to end.
  @slack 30_000

  @doc false
  def child_spec(options) do
    options = Options.validate!(options, :daemon)
    drain = env(options)["AXON_DRAIN_SECONDS"] || System.get_env("AXON_DRAIN_SECONDS", "60")
    # What is no number the daemon refuses, and says so.
    seconds = with {seconds, _rest} <- Float.parse(drain), do: seconds, else: (:error -> 60)
    shutdown = @slack + trunc(1_000 * seconds)
    %{id: Keyword.get(options, :name, __MODULE__), start: {__MODULE__, :start_link, [options]}, shutdown: shutdown}
  end

  @doc false
  @spec env(keyword) :: %{String.t() => String.t()}
  def env(options) do
    for {name, value} <- Keyword.get(options, :env, []), into: %{}, do: {to_string(name), to_string(value)}
  end

  @doc "Starts the daemon, and returns when it is ready."
  @spec start_link(keyword) :: GenServer.on_start()
  def start_link(options \\ []) do
    with {:ok, options} <- Options.validate(options, :daemon) do
      timeout = options[:timeout] + 5_000
      GenServer.start_link(__MODULE__, options, [timeout: timeout] ++ Keyword.take(options, [:name]))
    end
  end

  @doc "Where it serves."
  @spec endpoint(GenServer.server()) :: String.t()
  def endpoint(daemon), do: GenServer.call(daemon, :endpoint)

  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)
    command = options[:command]

    case {System.find_executable("sh"), executable(command)} do
      {nil, _command} -> {:stop, Error.new(:invalid_argument, "there is no sh, which ends the daemon with the VM")}
      {_sh, nil} -> {:stop, Error.new(:invalid_argument, "there is no #{command}: pip install axon-zmq, or name it")}
      {sh, command} -> open(sh, command, options)
    end
  end

  defp executable(command),
    do: if(File.regular?(command), do: Path.expand(command), else: System.find_executable(command))

  defp open(sh, command, options) do
    env = for {name, value} <- env(options), do: {to_charlist(name), to_charlist(value)}

    settings = [
      args: ["-c", @guard, "axon-zmq", command, "serve"],
      env: env,
      cd: Keyword.get(options, :cd, File.cwd!())
    ]

    port = Port.open({:spawn_executable, sh}, [:binary, :exit_status, :stderr_to_stdout, {:line, 4096} | settings])
    until = System.monotonic_time(:millisecond) + options[:timeout]
    await_ready(%{port: port, said: []}, until)
  end

  defp await_ready(%{port: port} = state, until) do
    receive do
      {^port, {:data, {_end, "serving on " <> served = line}}} ->
        Logger.info("axon-zmq: #{line}")
        {:ok, Map.put(state, :endpoint, served |> String.split() |> hd())}

      {^port, {:data, {_end, line}}} ->
        await_ready(%{state | said: Enum.take([line | state.said], 20)}, until)

      {^port, {:exit_status, code}} ->
        said = state.said |> Enum.reverse() |> Enum.join("\n")
        {:stop, Error.new(:no_answer, "the daemon ended with exit code #{code}: #{said}")}

      {:EXIT, _parent, reason} ->
        {:stop, reason}
    after
      max(0, until - System.monotonic_time(:millisecond)) ->
        Port.close(port)
        {:stop, Error.new(:no_answer, "the daemon was not ready in time")}
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
    {:stop, Error.new(:no_answer, "the daemon ended with exit code #{code}"), state}
  end

  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{port: port}) do
    with {:os_pid, pid} <- Port.info(port, :os_pid) do
      {_said, _code} = System.cmd("kill", ["-TERM", Integer.to_string(pid)])
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
