# The model calls Elixir functions. Each call runs in a separate task, so several run at the same time.
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

# The model `tools` needs no network: it makes the calls that its prompt lists.
agent = AxonCore.Agent.new(model: "tools", tools: [weather])
calls = ~s([{"name": "weather", "args": {"place": "Oslo"}}, {"name": "weather", "args": {"place": "Lisbon"}}])
{:ok, result} = AxonCore.run(axon, agent, calls)
IO.puts(result.result)

# A call of a Python tool, without a model.
{:ok, result} = AxonCore.call_tool(axon, "temperature", %{place: "Oslo"})
IO.inspect(result.result)
