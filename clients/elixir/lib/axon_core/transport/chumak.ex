if Code.ensure_loaded?(:chumak) do
  defmodule AxonCore.Transport.Chumak do
    @moduledoc """
    ZeroMQ in pure Erlang: the default.

    Written around what chumak does:

    | chumak | here |
    |---|---|
    | `send_multipart` waits while there is no connection, `recv_multipart` until something comes; of two receivers the second gets `{:error, :efsm}` | one sender and one receiver process |
    | `recv_multipart` before the first message was sent holds the socket up for 5 s | the receiver begins then |
    | a peer process that ends for good (a ZMTP PING, a handshake that times out) leaves the receiver waiting for ever | socket and peer are monitored: this process ends with them, and removes the socket from `chumak_sup` |
    | it connects again by itself, every 2 s, under the same identity, and says nothing of it | `AxonCore.Session` notices by what is missing |
    | identities are charlists that become atoms | one for each connection's name, never a random one |
    | TCP over IPv4 only | `endpoint` names such an address |
    | two crashes of sockets within 5 s end `chumak_sup`, and the application `chumak` with it | it is started again; in a release, make it `:temporary` |
    """

    use GenServer
    @behaviour AxonCore.Transport

    @impl AxonCore.Transport
    def required, do: [:chumak]

    @impl AxonCore.Transport
    def start_link(owner, options), do: GenServer.start_link(__MODULE__, {owner, options})

    @impl AxonCore.Transport
    def transmit(pid, frames), do: GenServer.cast(pid, {:transmit, frames})

    @impl AxonCore.Transport
    def waiting(pid) do
      GenServer.call(pid, :waiting)
    catch
      :exit, {_reason, {GenServer, :call, _args}} -> 0
    end

    @impl GenServer
    def init({owner, options}) do
      identity = String.to_charlist(options[:identity])
      {:ok, _started} = Application.ensure_all_started(:chumak)
      remove(identity)

      with {:ok, socket} <- :chumak.socket(:dealer, identity),
           {:ok, peer} <- :chumak.connect(socket, :tcp, String.to_charlist(options[:host]), options[:port]) do
        Process.flag(:trap_exit, true)
        Enum.each([socket, peer], &Process.monitor/1)
        transport = self()
        receiver = spawn_link(fn -> begin_to_receive(socket, owner, transport) end)
        sender = spawn_link(fn -> begin_to_send(socket, receiver) end)
        {:ok, %{identity: identity, owner: owner, receiver: receiver, sender: sender}}
      else
        {:error, reason} -> {:stop, {:no_socket, reason}}
      end
    end

    @impl GenServer
    def handle_cast({:transmit, frames}, state) do
      send(state.sender, {:transmit, frames})
      {:noreply, state}
    end

    @impl GenServer
    def handle_call(:waiting, _from, state) do
      {:message_queue_len, length} = Process.info(state.sender, :message_queue_len)
      {:reply, length, state}
    end

    @impl GenServer
    def handle_info({:DOWN, _ref, :process, _pid, reason}, state),
      do: {:stop, {:shutdown, {:socket_lost, reason}}, state}

    def handle_info({:EXIT, _pid, reason}, state), do: {:stop, {:shutdown, {:socket_lost, reason}}, state}

    @impl GenServer
    def terminate(_reason, state) do
      Enum.each([state.receiver, state.sender], &Process.exit(&1, :kill))
      remove(state.identity)
    end

    defp remove(identity) do
      child = :chumak_sup.get_child_id(identity)
      _ = :supervisor.terminate_child(:chumak_sup, child)
      _ = :supervisor.delete_child(:chumak_sup, child)
      :ok
    catch
      :exit, {_reason, {:gen_server, :call, _args}} -> :ok
    end

    # --- the two that wait ---------------------------------------------------------------------------

    defp begin_to_send(socket, receiver) do
      send_one(socket)
      send(receiver, :begin)
      Stream.run(Stream.repeatedly(fn -> send_one(socket) end))
    end

    defp send_one(socket) do
      receive do
        {:transmit, frames} -> :ok = :chumak.send_multipart(socket, frames)
      end
    end

    defp begin_to_receive(socket, owner, transport) do
      receive do
        :begin -> Stream.run(Stream.repeatedly(fn -> receive_one(socket, owner, transport) end))
      end
    end

    defp receive_one(socket, owner, transport) do
      case :chumak.recv_multipart(socket) do
        {:ok, frames} -> send(owner, {:axon_transport, transport, {:received, frames}})
        {:error, reason} when reason in [:timeout, :queue_empty] -> :ok
      end
    end
  end
end
