# The model calls Elixir functions: each in a task of its own, several at a time.
{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))

weather =
  AxonCore.Tool.new(
    name: "weather",
    description: "Degrees Celsius in a place.",
    parameters: [place: [type: :string, doc: "A town."]],
    returns: :number,
    function: fn
      %{"place" => "Oslo"} -> {:ok, -3}
      %{"place" => "Lisbon"} -> {:ok, 16}
      %{"place" => place} -> {:retry, "no station in #{place}; there are Lisbon and Oslo"}
    end
  )

# The model `tools` needs no network: its prompt says what to call.
agent = AxonCore.Agent.new(model: "tools", tools: [weather])
calls = ~s([{"name": "weather", "args": {"place": "Oslo"}}, {"name": "weather", "args": {"place": "Lisbon"}}])
{:ok, result} = AxonCore.run(axon, agent, calls)
IO.puts(result.result)

# And one of Python's tools is called without a model.
{:ok, result} = AxonCore.call_tool(axon, "temperature", %{place: "Oslo"})
IO.inspect(result.result)
