_ = Application.ensure_all_started(:telemetry)
# What needs the daemon is left out where the packages that it is reached with are not there: it says so and counts.
missing = for package <- [:chumak, Msgpax.Packer], not Code.ensure_loaded?(package), do: inspect(package)
erlzmq = if Code.ensure_loaded?(:erlzmq), do: [], else: [erlzmq: true]
command = AxonCore.TestDaemon.command()

left_out =
  cond do
    missing != [] -> {[daemon: true, packed: true], "#{Enum.join(missing, ", ")} not found: set AXON_ELIXIR_DEPS"}
    command == nil -> {[daemon: true] ++ erlzmq, "there is no axon-zmq: run scripts/setup dev"}
    erlzmq != [] -> {erlzmq, "erlzmq not found in AXON_ELIXIR_DEPS"}
    true -> {[], nil}
  end

{exclude, why} = left_out
if why, do: IO.puts("left out: #{inspect(exclude)}; #{why}")
# A message that must come is waited for, however busy the machine is: a pass never waits so long.
ExUnit.start(exclude: exclude, capture_log: true, timeout: 60_000, assert_receive_timeout: 20_000)
