# Measures one figure and prints it on one line: `mix run bench/figures.exs FIGURE TRANSPORT ENDPOINT`.
# `python -m bench.elixir` at the top of the repository starts the processes that it needs, and runs this script.
alias AxonCore.{Agent, Chunk, Connection, Result}

[figure, transport, endpoint] = System.argv()
module = %{"chumak" => AxonCore.Transport.Chumak, "erlzmq" => AxonCore.Transport.Erlzmq}[transport]
{:ok, axon} = Connection.start_link(endpoint: endpoint, transport: module, identity: "figures-#{transport}-#{figure}")
now = fn -> System.monotonic_time(:microsecond) end

defmodule Follow do
  def chunks(ref, seqs, times) do
    receive do
      {:axon, ^ref, {:chunk, %Chunk{seq: seq}}} ->
        if seq == 20, do: IO.puts("under way")
        chunks(ref, [seq | seqs], [System.monotonic_time(:microsecond) | times])

      {:axon, ^ref, {:complete, _result}} ->
        {Enum.reverse(seqs), Enum.reverse(times)}

      {:axon, ^ref, {:error, error}} ->
        raise error
    end
  end
end

case figure do
  # Chunks of a worker without an agent, sent as fast as possible. They must fit into the broker's send queue, because
  # this client reads without credit.
  "chunks" ->
    count = 40_000
    body = %{streams: 1, chunks: count, pause: 0, numbered: true}
    {:ok, handle} = Connection.request(axon, "run_stream", body)
    {seqs, times} = Follow.chunks(handle.ref, [], [])
    true = seqs == Enum.to_list(1..count)
    IO.puts(round(count / (List.last(times) - hd(times)) * 1_000_000))

  # Median time of one request, with one request at a time.
  "run" ->
    timed = fn ->
      began = now.()
      {:ok, %Result{}} = AxonCore.run(axon, "echo", "Hello")
      now.() - began
    end

    for _ <- 1..50, do: timed.()
    sorted = Enum.sort(for _ <- 1..400, do: timed.())
    IO.puts(Enum.at(sorted, 200))

  # 200 streams at the same time, each read by a separate process.
  "streams" ->
    speaker = Agent.new(model: "synthetic:tokens=100,delay_ms=20,size=5")
    began = now.()

    1..200
    |> Enum.map(fn _ -> Task.async(fn -> axon |> AxonCore.stream(speaker, "Count") |> Enum.map(&Map.get(&1, :seq)) end) end)
    |> Task.await_many(60_000)
    |> Enum.each(fn seqs -> true = seqs == Enum.to_list(1..(length(seqs) - 1)) ++ [nil] end)

    IO.puts(round((now.() - began) / 1_000))

  # The longest pause of a stream whose broker is killed meanwhile. It fails if a chunk is lost.
  "recovery" ->
    speaker = Agent.new(model: "synthetic:tokens=1500,delay_ms=10,size=5")
    {:ok, handle} = AxonCore.run_stream(axon, speaker, "Count")
    {seqs, times} = Follow.chunks(handle.ref, [], [])
    true = seqs == Enum.to_list(1..length(seqs))
    pauses = times |> Enum.chunk_every(2, 1, :discard) |> Enum.map(fn [earlier, later] -> later - earlier end)
    IO.puts(round(Enum.max(pauses) / 1_000))
end
