defmodule AxonCore.Calls do
  @moduledoc """
  Tool calls of one run, and the answers to them. It is pure: it has no process and sends nothing.

  It keeps rule 7 of the protocol, so that no call is executed twice and no answer is lost. After the loss of a
  connection or broker, the daemon sends earlier messages again, and lists in `resumed` the calls that are still open. A
  repeated call is executed only if it is listed and was never executed here. If a listed call was answered already, the
  same answer is sent again.
  """

  # Answers may be large or confidential, so a crash report must not show them.
  @derive {Inspect, only: [:states]}
  defstruct states: %{}, answers: [], listed: MapSet.new(), last: 0

  @typedoc "`:open` until the call is answered; `:closed` if it was cancelled, or answered by an earlier process."
  @type state :: :open | :answered | :closed
  @type t :: %__MODULE__{
          states: %{String.t() => state},
          answers: [{String.t(), binary}],
          listed: MapSet.t(String.t()),
          last: non_neg_integer
        }

  # Limit for all kept answers of a run; the oldest are dropped first.
  @max_kept_bytes 8 * 1024 * 1024

  @doc "Records a received call, and returns whether to execute it."
  @spec take(t, String.t(), pos_integer) :: {boolean, t}
  def take(%__MODULE__{states: states} = calls, id, _seq) when is_map_key(states, id), do: {false, calls}

  def take(calls, id, seq) do
    # A replayed call that `resumed` did not list was answered or cancelled before.
    closed? = seq <= calls.last and id not in calls.listed
    {not closed?, put(calls, id, if(closed?, do: :closed, else: :open))}
  end

  @doc "Records the cancellation of a call, and returns whether the call was known and not closed yet."
  @spec cancel(t, String.t()) :: {boolean, t}
  def cancel(calls, id) do
    if Map.get(calls.states, id, :closed) == :closed,
      do: {false, calls},
      else: {true, calls |> forget(id) |> put(id, :closed)}
  end

  @doc "Records a sent answer. It is kept, because it may be lost together with the connection or the broker."
  @spec answered(t, String.t(), binary) :: t
  def answered(calls, id, packed) do
    case calls.states[id] do
      state when state in [nil, :closed] ->
        calls

      _open ->
        calls = calls |> forget(id) |> put(id, :answered)
        %{calls | answers: newest([{id, packed} | calls.answers], @max_kept_bytes)}
    end
  end

  @doc "Records that the daemon refused the answer to a call: the call is open again."
  @spec refused(t, String.t()) :: t
  def refused(calls, id) do
    if calls.states[id] == :answered, do: calls |> forget(id) |> put(id, :open), else: calls
  end

  @doc """
  Records the open calls that a `resumed` lists, and returns the answers to send again.

  Messages with a `seq` up to `last` follow as a replay. An answer that is no longer kept is `nil`.
  """
  @spec resumed(t, [String.t()], non_neg_integer) :: {[{String.t(), binary | nil}], t}
  def resumed(calls, listed, last) do
    lost = for id <- listed, calls.states[id] == :answered, do: {id, kept(calls, id)}
    arrived = for {id, _packed} <- calls.answers, id not in listed, do: id
    {lost, Enum.reduce(arrived, %{calls | listed: MapSet.new(listed), last: last}, &forget(&2, &1))}
  end

  @doc "Returns whether a call waits for its answer."
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

  # The newest answer is kept whatever its size.
  defp newest([{_id, packed} = answer | older], room), do: [answer | fitting(older, room - byte_size(packed))]

  defp fitting([{_id, packed} = answer | older], room) when byte_size(packed) <= room do
    [answer | fitting(older, room - byte_size(packed))]
  end

  defp fitting(_older, _room), do: []
end
