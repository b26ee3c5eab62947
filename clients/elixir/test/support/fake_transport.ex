defmodule AxonCore.FakeTransport do
  @moduledoc "A transport whose other end is the test: it is told `{:sent, transport, frames}`, and answers with `say/3`."
  use GenServer
  @behaviour AxonCore.Transport

  @impl AxonCore.Transport
  def required, do: []

  @impl AxonCore.Transport
  def start_link(owner, options) do
    # The identity is the test's name.
    test = options[:identity] |> String.to_existing_atom() |> Process.whereis()
    GenServer.start_link(__MODULE__, {owner, test})
  end

  @impl AxonCore.Transport
  def transmit(pid, frames), do: GenServer.cast(pid, {:transmit, frames})

  @impl AxonCore.Transport
  def waiting(_pid), do: 0

  @doc "A message from the daemon."
  def say(pid, kind, id, body), do: GenServer.cast(pid, {:say, [kind, id, AxonCore.Codec.pack(body)]})

  @impl GenServer
  def init({owner, test}) do
    send(test, {:up, self()})
    {:ok, {owner, test}}
  end

  @impl GenServer
  def handle_cast({:transmit, frames}, {_owner, test} = state) do
    send(test, {:sent, self(), frames})
    {:noreply, state}
  end

  def handle_cast({:say, frames}, {owner, _test} = state) do
    send(owner, {:axon_transport, self(), {:received, frames}})
    {:noreply, state}
  end
end
