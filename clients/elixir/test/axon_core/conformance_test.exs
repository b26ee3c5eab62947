for {transport, tag} <- [{AxonCore.Transport.Chumak, :chumak}, {AxonCore.Transport.Erlzmq, :erlzmq}] do
  defmodule Module.concat(transport, "ConformanceTest") do
    use ExUnit.Case

    alias AxonCore.{Agent, Connection, Result, TestDaemon}

    @moduletag :daemon
    @moduletag tag
    @moduletag timeout: 180_000
    @transport transport

    test "the client passes all cases of the conformance suite" do
      endpoint = "tcp://127.0.0.1:#{TestDaemon.free_port()}"

      server =
        Task.async(fn ->
          System.cmd(TestDaemon.command(), ["conformance", "--server", "--json", "--endpoint", endpoint])
        end)

      connection = start_supervised!({Connection, endpoint: endpoint, identity: "conformance", transport: @transport})
      {:ok, %Result{result: cases}} = AxonCore.call_tool(connection, "cases")

      for name <- cases do
        {:ok, _} = AxonCore.call_tool(connection, "report", Map.put(play(connection, name), :case, name))
      end

      {verdicts, code} = Task.await(server, 60_000)
      assert code == 0, verdicts
      assert verdicts =~ ~s("passed":#{length(cases)})
    end

    defp play(connection, name) do
      me = self()

      note = [
        name: "note",
        parameters: [text: :string],
        function: fn %{"text" => text} -> send(me, {:ran, text}) && {:ok, text} end
      ]

      agent = %{Agent.new("conformance") | tools: [AxonCore.Tool.new(note)]}
      {:ok, handle} = AxonCore.run_stream(connection, agent, name, credit: 16, timeout_ms: 60_000)
      {text, ended} = follow(handle, "")
      %{text: text, end: ended, calls: ran([])}
    end

    defp follow(%{ref: ref} = handle, text) do
      receive do
        {:axon, ^ref, {:chunk, chunk}} ->
          AxonCore.took(handle, chunk.seq)
          follow(handle, if(chunk.type == :text, do: text <> chunk.data, else: text))

        {:axon, ^ref, {ended, _}} when ended in [:complete, :error] ->
          {text, ended}

        {:axon, ^ref, _other} ->
          follow(handle, text)
      end
    end

    defp ran(calls) do
      receive do
        {:ran, text} -> ran([text | calls])
      after
        0 -> Enum.reverse(calls)
      end
    end
  end
end
