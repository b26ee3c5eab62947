# A person decides: the run ends with the calls, and a later one goes on from there.
alias AxonCore.{AgentProcess, Result}

{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))

pay = [name: "pay", parameters: [euros: :integer], approval: true, function: &{:ok, "paid #{&1["euros"]}"}]
{:ok, agent} = AgentProcess.start_link(connection: axon, agent: AxonCore.Agent.new(model: "tools", tools: [pay]))

calls = ~s([{"name": "pay", "args": {"euros": 12}}, {"name": "pay", "args": {"euros": 9000}}])
{:ok, %Result{deferred: %{"approvals" => waiting}}} = AgentProcess.run(agent, calls)

decide = fn %{"call_id" => id, "args" => %{"euros" => euros}} ->
  IO.puts("may it pay #{euros}?")
  {id, if(euros < 100, do: true, else: %{kind: "tool-denied", message: "too much"})}
end

# The conversation may be kept for as long as that takes: `AgentProcess.history/1`, and `message_history` one day.
{:ok, result} = AgentProcess.run(agent, nil, deferred_tool_results: %{approvals: Map.new(waiting, decide)})
IO.puts(result.result)
