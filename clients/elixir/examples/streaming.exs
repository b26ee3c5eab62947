# Three ways to read a stream.
alias AxonCore.{AgentProcess, Chunk, Result}

{:ok, axon} = AxonCore.Connection.start_link(endpoint: System.get_env("AXON_FRONTEND", "tcp://127.0.0.1:5570"))
speaker = AxonCore.Agent.new(model: "synthetic:tokens=5,delay_ms=50,size=3")
{:ok, agent} = AgentProcess.start_link(connection: axon, agent: speaker, history: false)

# A lazy stream: if it is read slowly, the model waits.
for %Chunk{data: text} <- AgentProcess.stream(agent, "Count"), do: IO.puts("streamed #{String.trim(text)}")

# A callback.
{:ok, %Result{}} = AgentProcess.run_stream(agent, "Count", each: &IO.puts("called #{String.trim(&1.data)}"))

# Messages to this process, or to another one with the option `to`.
{:ok, handle} = AgentProcess.run_stream(agent, "Count")

defmodule Listener do
  def listen(ref) do
    receive do
      {:axon, ^ref, {:chunk, %Chunk{type: :text, data: text}}} ->
        IO.puts("received #{String.trim(text)}")
        listen(ref)

      {:axon, ^ref, {:complete, result}} ->
        IO.puts("complete: #{result.result}")

      {:axon, ^ref, {:error, error}} ->
        IO.puts("failed: #{Exception.message(error)}")
    end
  end
end

Listener.listen(handle.ref)
