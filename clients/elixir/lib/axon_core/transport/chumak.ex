if Code.ensure_loaded?(:chumak) do
  defmodule AxonCore.Transport.Chumak do
    @moduledoc """
    Default transport, on chumak, an implementation of ZeroMQ in Erlang.

    It works around these limits of chumak (version 1.5):

    | chumak | this transport |
    |---|---|
    | `send_multipart` blocks while the socket is disconnected; `recv_multipart` blocks until a message arrives. A second concurrent receiver gets `{:error, :efsm}`. | It has one sender and one receiver process. |
    | `recv_multipart` before the first message was sent blocks the socket for 5 s. | The receiver starts after the first message was sent. |
    | If a peer process ends permanently (after a ZMTP PING, or a handshake timeout), the receiver waits forever. | It monitors socket and peer, exits with them, and removes the socket from `chumak_sup`. |
    | chumak reconnects every 2 s with the same identity, and does not report it. | `AxonCore.Session` detects a reconnect by the missing messages. |
    | An identity is a charlist, which chumak turns into an atom. Atoms are never freed. | Each connection keeps its identity over restarts. |
    | It supports only TCP over IPv4. | `endpoint` must be such an address. |
    | Two socket crashes within 5 s end `chumak_sup`, and with it the application `chumak`. | It starts the application again. In a release, give chumak the type `:temporary`; otherwise the VM exits. |
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
        # `terminate/2` must run when the owner exits, to remove the socket.
        Process.flag(:trap_exit, true)
        Enum.each([socket, peer], &Process.monitor/1)
        transport = self()
        receiver = spawn_link(fn -> receive_loop(socket, owner, transport) end)
        sender = spawn_link(fn -> send_loop(socket, receiver) end)
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

    # `chumak_sup` restarts a crashed socket by itself. If a socket already runs under the identity, `:chumak.socket/2`
    # returns that socket, whatever its state. The socket must be removed before a new one can be created.
    defp remove(identity) do
      child = :chumak_sup.get_child_id(identity)
      _ = :supervisor.terminate_child(:chumak_sup, child)
      _ = :supervisor.delete_child(:chumak_sup, child)
      :ok
    catch
      :exit, {_reason, {:gen_server, :call, _args}} -> :ok
    end

    # --- sender and receiver -------------------------------------------------------------------------

    defp send_loop(socket, receiver) do
      send_one(socket)
      # The first message is sent, so the socket is connected, and receiving no longer blocks it.
      send(receiver, :begin)
      Stream.run(Stream.repeatedly(fn -> send_one(socket) end))
    end

    defp send_one(socket) do
      receive do
        {:transmit, frames} -> :ok = :chumak.send_multipart(socket, frames)
      end
    end

    defp receive_loop(socket, owner, transport) do
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
