# Tool calls that a person approves: the run ends with the open calls, and a later run continues with the decisions.
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

# The decision may take days: store `AgentProcess.history/1`, and pass it as `message_history` when you continue.
{:ok, result} = AgentProcess.run(agent, nil, deferred_tool_results: %{approvals: Map.new(waiting, decide)})
IO.puts(result.result)
