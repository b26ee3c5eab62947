if Code.ensure_loaded?(:erlzmq) do
  defmodule AxonCore.Transport.Erlzmq do
    @moduledoc """
    Transport on libzmq, through the dirty NIFs of `erlzmq_dnif`.

    Unlike chumak it has a high-water mark, and it first tries to reconnect after 100 ms instead of 2 s.

    A blocking call of erlzmq blocks every other call on the same socket. Therefore one process does everything: it
    sends all queued messages, receives all available ones, and then polls for 1 ms, or up to 20 ms while idle.
    """

    @behaviour AxonCore.Transport

    @min_poll_ms 1
    @max_poll_ms 20
    # Maximum number of messages received in one turn, so that a flood of them does not delay sending.
    @batch 256

    @impl true
    def required, do: [:erlzmq]

    @impl true
    def start_link(owner, options) do
      :proc_lib.start_link(__MODULE__, :init, [owner, options])
    end

    @impl true
    def transmit(pid, frames) do
      send(pid, {:transmit, frames})
      :ok
    end

    @impl true
    def waiting(pid) do
      case Process.info(pid, :message_queue_len) do
        {:message_queue_len, length} -> length
        nil -> 0
      end
    end

    @doc false
    def init(owner, options) do
      # The owner's exit must arrive as a message, so that the socket is closed.
      Process.flag(:trap_exit, true)
      {:ok, context} = :erlzmq.context()
      {:ok, socket} = :erlzmq.socket(context, :dealer)

      # `linger: 0`: otherwise closing the socket would wait forever for unsent messages.
      for {option, value} <- [identity: options[:identity], linger: 0, reconnect_ivl: 100, reconnect_ivl_max: 2_000] do
        :ok = :erlzmq.setsockopt(socket, option, value)
      end

      :ok = :erlzmq.connect(socket, "tcp://#{options[:host]}:#{options[:port]}")
      :proc_lib.init_ack({:ok, self()})
      loop(%{owner: owner, context: context, socket: socket, held: nil}, @min_poll_ms)
    end

    defp loop(state, wait) do
      with {sent, state} <- transmit_all(state),
           received when is_integer(received) <- receive_all(state, @batch),
           wait = if(sent + received > 0, do: @min_poll_ms, else: min(2 * wait, @max_poll_ms)),
           :ok <- if(received < @batch, do: poll(state.socket, wait), else: :ok) do
        loop(state, wait)
      else
        {:stop, reason} ->
          _ = :erlzmq.close(state.socket)
          _ = :erlzmq.term(state.context)
          exit(reason)
      end
    end

    defp poll(socket, wait) do
      case :erlzmq.poll(socket, [:pollin], wait) do
        {:ok, _ready} -> :ok
        {:error, :eagain} -> :ok
        {:error, reason} -> lost(reason)
      end
    end

    # `:shutdown` avoids a crash report: the connection logs the loss itself and starts another transport.
    defp lost(reason), do: {:stop, {:shutdown, {:socket_lost, reason}}}

    # If the pipe is full, the message is held and sent first in the next turn.
    defp transmit_all(%{held: frames} = state) when frames != nil do
      case :erlzmq.send_multipart(state.socket, frames, [:dontwait]) do
        :ok -> count_sent(transmit_all(%{state | held: nil}))
        {:error, :eagain} -> check_owner({0, state})
        {:error, reason} -> lost(reason)
      end
    end

    defp transmit_all(state) do
      receive do
        {:transmit, frames} -> transmit_all(%{state | held: frames})
        {:EXIT, _owner, reason} -> {:stop, reason}
      after
        0 -> {0, state}
      end
    end

    # While the pipe is full, no `:transmit` is read from the mailbox, but the exit of the owner must still be noticed.
    defp check_owner(result) do
      receive do
        {:EXIT, _owner, reason} -> {:stop, reason}
      after
        0 -> result
      end
    end

    defp count_sent({:stop, reason}), do: {:stop, reason}
    defp count_sent({sent, state}), do: {sent + 1, state}

    defp receive_all(_state, 0), do: @batch

    defp receive_all(state, room) do
      case :erlzmq.recv_multipart(state.socket, [:dontwait]) do
        {:ok, frames} ->
          send(state.owner, {:axon_transport, self(), {:received, frames}})
          receive_all(state, room - 1)

        {:error, :eagain} ->
          @batch - room

        {:error, reason} ->
          lost(reason)
      end
    end
  end
end
