defmodule AxonCore.Handle do
  @moduledoc """
  A request that was sent. Its messages are `{:axon, handle.ref, event}`; what can be done with it is in `AxonCore`.
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
