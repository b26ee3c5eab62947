if Code.ensure_loaded?(:erlzmq) do
  defmodule AxonCore.Transport.Erlzmq do
    @moduledoc """
    libzmq through `erlzmq_dnif`: dirty NIFs, a high-water mark, and libzmq's own reconnects.

    A call of erlzmq's that waits holds up every other call on its socket. So one process does both: it sends what there is
    to send, takes what has come, and waits for at most a millisecond (20 while nothing happens) for more.
    """

    @behaviour AxonCore.Transport

    @busy 1
    @idle 20
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
      Process.flag(:trap_exit, true)
      {:ok, context} = :erlzmq.context()
      {:ok, socket} = :erlzmq.socket(context, :dealer)

      for {option, value} <- [identity: options[:identity], linger: 0, reconnect_ivl: 100, reconnect_ivl_max: 2_000] do
        :ok = :erlzmq.setsockopt(socket, option, value)
      end

      :ok = :erlzmq.connect(socket, "tcp://#{options[:host]}:#{options[:port]}")
      :proc_lib.init_ack({:ok, self()})
      loop(%{owner: owner, context: context, socket: socket, held: nil}, @busy)
    end

    defp loop(state, wait) do
      with {sent, state} <- transmit_all(state),
           received when is_integer(received) <- receive_all(state, @batch),
           wait = if(sent + received > 0, do: @busy, else: min(2 * wait, @idle)),
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

    defp lost(reason), do: {:stop, {:shutdown, {:socket_lost, reason}}}

    # What a full pipe does not take is held, and tried first the next time.
    defp transmit_all(%{held: frames} = state) when frames != nil do
      case :erlzmq.send_multipart(state.socket, frames, [:dontwait]) do
        :ok -> sent_one(transmit_all(%{state | held: nil}))
        {:error, :eagain} -> if_owned({0, state})
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

    # While the pipe is full nothing else is read here, and yet its owner's end shall be this one's.
    defp if_owned(sent) do
      receive do
        {:EXIT, _owner, reason} -> {:stop, reason}
      after
        0 -> sent
      end
    end

    defp sent_one({:stop, reason}), do: {:stop, reason}
    defp sent_one({sent, state}), do: {sent + 1, state}

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
