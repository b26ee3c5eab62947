# One request in each mode, structured output, and an error.
{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))

{:ok, result} = AxonCore.run(axon, "echo", "Hello from Agent.run")
IO.puts(result.result)

{:ok, result} = AxonCore.run_sync(axon, "echo", "Hello from Agent.run_sync")
IO.puts(result.result)

weather = AxonCore.Agent.new(model: "echo", output: [city: :string, day: :date])
{:ok, result} = AxonCore.run(axon, weather, ~s({"city": "Oslo", "day": "2026-11-27"}))
IO.inspect(result.result)

{:error, error} = AxonCore.run(axon, "ecko", "Hello")
IO.puts(Exception.message(error))
