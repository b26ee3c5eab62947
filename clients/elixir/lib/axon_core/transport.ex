defmodule AxonCore.Transport do
  @moduledoc """
  What a connection needs of a ZeroMQ library: a process with one DEALER socket.

  It is linked to its owner, and tells it `{:axon_transport, pid, {:received, frames}}` for each message, in order. It ends
  when its socket can no longer be used; the owner then starts another. `transmit/2` never waits for the other end.
  """

  @typedoc """
  - `identity`: ASCII text, at most 200 bytes, the same for each connection of this application
  - `host`, `port`: where the daemon is
  """
  @type options :: [identity: String.t(), host: String.t(), port: :inet.port_number()]

  @callback start_link(owner :: pid, options) :: {:ok, pid} | {:error, term}
  @callback transmit(pid, AxonCore.Codec.frames()) :: :ok

  @doc "Messages that wait to be sent, because the daemon is away."
  @callback waiting(pid) :: non_neg_integer

  @doc "Modules that must be there."
  @callback required() :: [module]

  alias AxonCore.Error

  # The transports of this package, each compiled only if its library is loaded: what to add to mix.exs for it.
  @dependencies %{
    AxonCore.Transport.Chumak => ~s({:chumak, "~> 1.5"}),
    AxonCore.Transport.Erlzmq => ~s({:erlzmq, "~> 4.2", hex: :erlzmq_dnif})
  }

  @doc "Whether a module is a transport whose library is there: the error that names what is missing if not."
  @spec check(module) :: :ok | {:error, Error.t()}
  def check(transport) do
    if Code.ensure_loaded?(transport) and function_exported?(transport, :required, 0),
      do: check_required(transport),
      else: {:error, not_there(transport)}
  end

  defp check_required(transport) do
    case Enum.find(transport.required(), &(not Code.ensure_loaded?(&1))) do
      nil -> :ok
      module -> {:error, missing(transport, module)}
    end
  end

  defp missing(transport, _module) when is_map_key(@dependencies, transport), do: not_there(transport)

  defp missing(transport, module) do
    Error.new(:invalid_argument, "#{inspect(transport)} needs the module #{inspect(module)}, which is not there")
  end

  defp not_there(transport) do
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
