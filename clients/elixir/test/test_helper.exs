_ = Application.ensure_all_started(:telemetry)
# Tests whose packages or daemon are missing are excluded, and the reason is printed.
missing = for package <- [:chumak, Msgpax.Packer], not Code.ensure_loaded?(package), do: inspect(package)
erlzmq = if Code.ensure_loaded?(:erlzmq), do: [], else: [erlzmq: true]
command = AxonCore.TestDaemon.command()

left_out =
  cond do
    missing != [] -> {[daemon: true, packed: true], "#{Enum.join(missing, ", ")} not found: set AXON_ELIXIR_DEPS"}
    command == nil -> {[daemon: true] ++ erlzmq, "axon-zmq not found: run scripts/setup dev"}
    erlzmq != [] -> {erlzmq, "erlzmq not found in AXON_ELIXIR_DEPS"}
    true -> {[], nil}
  end

{exclude, why} = left_out
if why, do: IO.puts("left out: #{inspect(exclude)}; #{why}")
# A long timeout, so that no test fails on a busy machine. A passing test does not wait for it.
ExUnit.start(exclude: exclude, capture_log: true, timeout: 60_000, assert_receive_timeout: 20_000)
