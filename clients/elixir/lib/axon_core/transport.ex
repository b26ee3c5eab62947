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

  @doc "Packages that must be there."
  @callback required() :: [module]
end
