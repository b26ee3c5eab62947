defmodule AxonCore.Transport do
  @moduledoc """
  Behaviour of a transport: a process with one DEALER socket of a ZeroMQ library.

  The process is linked to its owner, and sends it `{:axon_transport, pid, {:received, frames}}` for each message, in
  order. It exits if its socket becomes unusable; the owner then starts another transport. `transmit/2` must not wait
  for the daemon.
  """

  @typedoc """
  - `identity`: the routing id of the socket: ASCII text of at most 200 bytes, the same after each reconnect
  - `host`, `port`: the address of the daemon
  """
  @type options :: [identity: String.t(), host: String.t(), port: :inet.port_number()]

  @doc "Starts the transport and links it to its owner."
  @callback start_link(owner :: pid, options) :: {:ok, pid} | {:error, term}

  @doc "Sends the frames of a message, or queues them if the daemon is unreachable."
  @callback transmit(pid, AxonCore.Codec.frames()) :: :ok

  @doc "Returns the number of messages that wait to be sent because the daemon is unreachable."
  @callback waiting(pid) :: non_neg_integer

  @doc "Returns the modules of the library that must be loaded."
  @callback required() :: [module]

  alias AxonCore.Error

  # Dependencies to add to mix.exs for the transports of this package. Each transport is compiled only if its library is
  # loaded.
  @dependencies %{
    AxonCore.Transport.Chumak => ~s({:chumak, "~> 1.5"}),
    AxonCore.Transport.Erlzmq => ~s({:erlzmq, "~> 4.2", hex: :erlzmq_dnif})
  }

  @doc "Returns `:ok` if a module is a transport whose library is loaded, and otherwise an error that names the cause."
  @spec check(module) :: :ok | {:error, Error.t()}
  def check(transport) do
    if Code.ensure_loaded?(transport) and function_exported?(transport, :required, 0),
      do: check_required(transport),
      else: {:error, unavailable(transport)}
  end

  defp check_required(transport) do
    case Enum.find(transport.required(), &(not Code.ensure_loaded?(&1))) do
      nil -> :ok
      module -> {:error, missing(transport, module)}
    end
  end

  defp missing(transport, _module) when is_map_key(@dependencies, transport), do: unavailable(transport)

  defp missing(transport, module) do
    text =
      "#{inspect(transport)} needs the module #{inspect(module)}, which cannot be loaded; add its package to mix.exs"

    Error.new(:invalid_argument, text)
  end

  defp unavailable(transport) do
    case @dependencies do
      %{^transport => dependency} ->
        Error.missing_package(inspect(transport), dependency)

      _another ->
        expected = "a module with the behaviour AxonCore.Transport"
        text = "invalid option :transport of AxonCore.Connection: expected #{expected}, got: #{inspect(transport)}"
        Error.new(:invalid_argument, text)
    end
  end
end
