defmodule AxonCore.Credit do
  @moduledoc """
  The credit of one run (rule 9 of the protocol): as many chunks and logs may be on their way as the window holds.

  Messages are counted by their `seq`, and those that need no credit, such as tool calls, have one too: each that is not
  behind what was taken moves the limit by one, so that it takes no room from the others.
  """

  @enforce_keys [:window, :granted]
  defstruct [:window, :granted, took: 0, free: []]

  @typedoc "`granted` is the highest `seq` that was promised, `free` those after `took` that needed no credit."
  @type t :: %__MODULE__{
          window: pos_integer,
          granted: pos_integer,
          took: non_neg_integer,
          free: [pos_integer]
        }

  @doc "The credit that goes with a request."
  @spec new(pos_integer) :: t
  def new(window), do: %__MODULE__{window: window, granted: window}

  @doc "Who asked has dealt with everything up to this `seq`."
  @spec took(t, pos_integer) :: t
  def took(%{took: took} = credit, seq) when seq <= took, do: credit
  def took(credit, seq), do: %{credit | took: seq, free: Enum.filter(credit.free, &(&1 > seq))}

  @doc "A message came that needs no credit."
  @spec free(t, pos_integer) :: t
  def free(credit, seq), do: %{credit | free: [seq | credit.free]}

  @doc "What is to be promised now, once half of the window is used; `nil` where that is not so."
  @spec grant(t) :: {pos_integer | nil, t}
  def grant(%{window: window, granted: granted} = credit) do
    upto = credit.took + length(credit.free) + window
    if upto - granted > div(window, 2), do: {upto, %{credit | granted: upto}}, else: {nil, credit}
  end
end
