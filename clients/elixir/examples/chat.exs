# A conversation that continues over a restart of the broker: kill the broker process while this script runs.
alias AxonCore.{AgentProcess, Chunk}

{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))
speaker = AxonCore.Agent.new(model: "synthetic:tokens=20,delay_ms=100,size=3")
{:ok, chat} = AgentProcess.start_link(connection: axon, agent: speaker)

for turn <- 1..2 do
  text = for %Chunk{data: piece} <- AgentProcess.stream(chat, "Turn #{turn}"), into: "", do: piece
  IO.puts("turn #{turn}: #{length(String.split(text))} words")
end

IO.puts("#{length(AgentProcess.history(chat))} messages")
