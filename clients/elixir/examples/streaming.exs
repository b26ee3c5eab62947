# Three ways to read a stream.
alias AxonCore.{AgentProcess, Chunk, Result}

{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))
speaker = AxonCore.Agent.new(model: "synthetic:tokens=5,delay_ms=50,size=3")
{:ok, agent} = AgentProcess.start_link(connection: axon, agent: speaker, history: false)

# A lazy stream: who reads slowly makes the model wait.
for %Chunk{data: text} <- AgentProcess.stream(agent, "Count"), do: IO.puts("lazily #{String.trim(text)}")

# A callback.
{:ok, %Result{}} = AgentProcess.run_stream(agent, "Count", each: &IO.puts("called #{String.trim(&1.data)}"))

# Messages, to this process or another.
{:ok, handle} = AgentProcess.run_stream(agent, "Count")

defmodule Listen do
  def to(ref) do
    receive do
      {:axon, ^ref, {:chunk, %Chunk{type: :text, data: text}}} ->
        IO.puts("heard #{String.trim(text)}")
        to(ref)

      {:axon, ^ref, {:complete, result}} ->
        IO.puts("whole: #{result.result}")

      {:axon, ^ref, {:error, error}} ->
        IO.puts("failed: #{Exception.message(error)}")
    end
  end
end

Listen.to(handle.ref)
