defmodule AxonCore.Credit do
  @moduledoc """
  Flow control of one run (rule 9 of the protocol): at most `window` chunks and logs are unacknowledged at a time.

  On the wire, credit is the highest `seq` up to which the daemon may send chunks and logs. Messages that need no
  credit, such as tool calls, are numbered too. Each of them after the last acknowledged message therefore raises the
  limit by one, so that it does not reduce the number of chunks and logs that may be sent.
  """

  @enforce_keys [:window, :granted]
  defstruct [:window, :granted, took: 0, free: []]

  @typedoc """
  - `granted`: the highest `seq` granted to the daemon
  - `took`: the highest acknowledged `seq`
  - `free`: the `seq` of each received message after `took` that needed no credit
  """
  @type t :: %__MODULE__{
          window: pos_integer,
          granted: pos_integer,
          took: non_neg_integer,
          free: [pos_integer]
        }

  @doc "Returns the credit of a new run, whose request grants the window."
  @spec new(pos_integer) :: t
  def new(window), do: %__MODULE__{window: window, granted: window}

  @doc "Records that the caller has processed all messages up to this `seq`."
  @spec took(t, pos_integer) :: t
  def took(%{took: took} = credit, seq) when seq <= took, do: credit
  def took(credit, seq), do: %{credit | took: seq, free: Enum.filter(credit.free, &(&1 > seq))}

  @doc "Records a received message that needed no credit."
  @spec free(t, pos_integer) :: t
  def free(credit, seq), do: %{credit | free: [seq | credit.free]}

  @doc """
  Returns the new limit to send to the daemon, or `nil` if less than half of the window is used.

  Waiting for half of the window saves a message for each acknowledged chunk.
  """
  @spec grant(t) :: {pos_integer | nil, t}
  def grant(%{window: window, granted: granted} = credit) do
    upto = credit.took + length(credit.free) + window
    if upto - granted > div(window, 2), do: {upto, %{credit | granted: upto}}, else: {nil, credit}
  end
end
