defmodule AxonCore.Handle do
  @moduledoc """
  Handle of a request that was sent.

  The messages of the request are `{:axon, handle.ref, event}`. `AxonCore` has the functions that take a handle, such as
  `AxonCore.await/2` and `AxonCore.cancel/1`.
  """

  @enforce_keys [:ref, :id, :kind, :connection, :to]
  defstruct [:ref, :id, :kind, :connection, :to, :credit]

  @type t :: %__MODULE__{
          ref: reference,
          id: binary,
          kind: String.t(),
          connection: pid,
          to: pid,
          credit: pos_integer | nil
        }
end
