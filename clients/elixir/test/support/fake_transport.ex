defmodule AxonCore.FakeTransport do
  @moduledoc """
  Transport without a socket, for tests that play the daemon.

  The test process receives each sent message as `{:sent, transport, frames}`, and answers with `deliver/4`.
  """
  use GenServer
  @behaviour AxonCore.Transport

  @impl AxonCore.Transport
  def required, do: []

  @impl AxonCore.Transport
  def start_link(owner, options) do
    # The identity is the registered name of the test process.
    test = options[:identity] |> String.to_existing_atom() |> Process.whereis()
    GenServer.start_link(__MODULE__, {owner, test})
  end

  @impl AxonCore.Transport
  def transmit(pid, frames), do: GenServer.cast(pid, {:transmit, frames})

  @impl AxonCore.Transport
  def waiting(_pid), do: 0

  @doc "Delivers a message as if the daemon had sent it."
  def deliver(pid, kind, id, body), do: GenServer.cast(pid, {:deliver, [kind, id, AxonCore.Codec.pack(body)]})

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

  def handle_cast({:deliver, frames}, {owner, _test} = state) do
    send(owner, {:axon_transport, self(), {:received, frames}})
    {:noreply, state}
  end
end
