defmodule AxonCore.Calls do
  @moduledoc """
  The calls of one run's tools: none is run twice, and no answer is lost. No process, nothing is sent.

  A connection or a broker may go while calls are open. `resumed` then tells which calls still are; what was sent before
  comes again. Rule 7 of the protocol: a call that comes again is run only where it is still open and never was; one that
  was answered is answered again with the same answer.
  """

  # What tools return does not belong into a crash report.
  @derive {Inspect, only: [:states]}
  defstruct states: %{}, answers: [], listed: MapSet.new(), last: 0

  @typedoc "`:open` until it is answered; `:closed` where it was cancelled, or answered by an earlier process."
  @type state :: :open | :answered | :closed
  @type t :: %__MODULE__{
          states: %{String.t() => state},
          answers: [{String.t(), binary}],
          listed: MapSet.t(String.t()),
          last: non_neg_integer
        }

  # Bytes of all answers of a run that are kept; the oldest go first.
  @kept 8 * 1024 * 1024

  @doc "A call came in sequence: whether it is to be run."
  @spec take(t, String.t(), pos_integer) :: {boolean, t}
  def take(%__MODULE__{states: states} = calls, id, _seq) when is_map_key(states, id), do: {false, calls}

  def take(calls, id, seq) do
    is_over = seq <= calls.last and id not in calls.listed
    {not is_over, put(calls, id, if(is_over, do: :closed, else: :open))}
  end

  @doc "Its answer is no longer wanted: whether it was to be given."
  @spec cancel(t, String.t()) :: {boolean, t}
  def cancel(calls, id) do
    if Map.get(calls.states, id, :closed) == :closed,
      do: {false, calls},
      else: {true, calls |> forget(id) |> put(id, :closed)}
  end

  @doc "An answer was sent: it is kept, since it can be lost with a connection or a broker."
  @spec answered(t, String.t(), binary) :: t
  def answered(calls, id, packed) do
    case calls.states[id] do
      state when state in [nil, :closed] ->
        calls

      _open ->
        calls = calls |> forget(id) |> put(id, :answered)
        %{calls | answers: newest([{id, packed} | calls.answers], @kept)}
    end
  end

  @doc "An answer was none: the call is open as before."
  @spec refused(t, String.t()) :: t
  def refused(calls, id) do
    if calls.states[id] == :answered, do: calls |> forget(id) |> put(id, :open), else: calls
  end

  @doc """
  The daemon says which calls are open, before it sends again what it sent up to `last`; the answers that were lost, to be
  sent again. `nil` stands for one that is no longer kept.
  """
  @spec resumed(t, [String.t()], non_neg_integer) :: {[{String.t(), binary | nil}], t}
  def resumed(calls, listed, last) do
    lost = for id <- listed, calls.states[id] == :answered, do: {id, kept(calls, id)}
    arrived = for {id, _packed} <- calls.answers, id not in listed, do: id
    {lost, Enum.reduce(arrived, %{calls | listed: MapSet.new(listed), last: last}, &forget(&2, &1))}
  end

  @doc "Whether a call waits for its answer."
  @spec open?(t, String.t()) :: boolean
  def open?(calls, id), do: calls.states[id] == :open

  defp kept(calls, id) do
    case List.keyfind(calls.answers, id, 0) do
      {^id, packed} -> packed
      nil -> nil
    end
  end

  defp put(calls, id, state), do: %{calls | states: Map.put(calls.states, id, state)}
  defp forget(calls, id), do: %{calls | answers: List.keydelete(calls.answers, id, 0)}

  # The last one is kept however large it is.
  defp newest([{_id, packed} = answer | older], room), do: [answer | fitting(older, room - byte_size(packed))]

  defp fitting([{_id, packed} = answer | older], room) when byte_size(packed) <= room do
    [answer | fitting(older, room - byte_size(packed))]
  end

  defp fitting(_older, _room), do: []
end
