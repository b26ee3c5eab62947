defmodule AxonCore.Run do
  @moduledoc """
  A client's side of one request: what each message means and what is to be done about it. No process, nothing is sent;
  time is passed in, in milliseconds.

  It keeps the rules that every client must: the sequence (rule 1), what is asked after a new broker (rule 6), tool calls
  that are run once and answered until the answer has arrived (rule 7), and credit (rule 9).

  What is to be done is a list of actions, in order:

  | action | what it asks for |
  |---|---|
  | `{:transmit, frames}` | send them |
  | `{:event, event}` | tell who asked |
  | `{:call, call, function}` | run a tool |
  | `{:stop, call_id}` | stop it: its answer is not wanted |
  | `{:ended, event}` | tell who asked; nothing more comes |
  """

  alias AxonCore.{Calls, Chunk, Codec, Credit, Error, Message, Result, ToolUtils}

  # Prompts do not belong into a crash report.
  @derive {Inspect, except: [:frames, :functions]}
  @enforce_keys [:id, :kind, :sent_at, :deadline]
  defstruct [
    :id,
    :kind,
    :sent_at,
    :deadline,
    :credit,
    :begun_again_at,
    :resumed_at,
    :resume_due,
    frames: [],
    functions: %{},
    calls: %Calls{},
    taken: MapSet.new(),
    mended: MapSet.new(),
    last: 0,
    highest: 0,
    cancelled?: false
  ]

  @type call :: %{call_id: String.t(), name: String.t(), args: map}
  @type event ::
          {:accepted, boolean}
          | {:chunk, Chunk.t()}
          | {:log, map}
          | {:tool_call, call}
          | {:tool_cancelled, String.t()}
          | {:refused, Error.t()}
          | terminal
  @type terminal :: {:complete, Result.t() | map} | {:error, Error.t()}
  @type action ::
          {:transmit, Codec.frames()}
          | {:event, event}
          | {:call, call, ToolUtils.tool_function()}
          | {:stop, String.t()}
          | {:ended, terminal}
  @type t :: %__MODULE__{id: binary, kind: String.t(), sent_at: integer, deadline: integer}

  @runs ~w(run_sync run run_stream call_tool)
  @resume_again 2_000
  @patience 10_000
  @default_timeout 600_000
  @describe_timeout 10_000
  @lost_answer "the answer was lost, and is no longer kept"

  @doc """
  A request, and the message that asks for it.

  `functions` are those of its tools, by name; they never go over the wire. Raises `AxonCore.Error`
  (`:invalid_argument`) where header or body cannot be sent.
  """
  @spec new(binary, String.t(), map, map, %{String.t() => ToolUtils.tool_function()}, integer) :: t
  def new(id, kind, header, body, functions, now) do
    timeout = if kind in @runs, do: header[:timeout_ms] || @default_timeout, else: @describe_timeout

    %__MODULE__{
      id: id,
      kind: kind,
      sent_at: now,
      deadline: now + timeout + @patience,
      frames: [Codec.message(kind, id, header, body)],
      credit: header[:credit] && Credit.new(header[:credit]),
      functions: functions
    }
  end

  @doc "Whether the daemon runs something for it, which can be resumed and cancelled."
  @spec run?(t) :: boolean
  def run?(run), do: run.kind in @runs

  # --- what came -----------------------------------------------------------------------------------

  @doc "Handles a message of this request."
  @spec heard(t, Message.t(), integer) :: {[action], t}
  def heard(run, %Message{seq: nil, event: event}, now), do: take(event, run, now)

  def heard(run, %Message{seq: seq, event: event}, now) do
    run = %{run | highest: max(run.highest, seq)}

    cond do
      seq == run.last + 1 -> event |> take(%{run | last: seq, frames: []}, now) |> passed(event)
      seq <= run.last -> {[], run}
      true -> resume(run, now)
    end
  end

  defp take({kind, _event} = event, run, _now) when kind in [:chunk, :log, :accepted], do: {[{:event, event}], run}
  defp take({:tool_call, call}, run, _now), do: called(call, run)
  defp take({:tool_cancelled, call_id}, run, _now), do: uncalled(call_id, run)
  defp take({:resumed, resumed}, run, _now), do: resumed(resumed, run)
  defp take({:refused, refused}, run, now), do: refused(refused, run, now)
  defp take({:complete, result}, run, _now), do: {[{:ended, {:complete, result}}], run}
  defp take({:catalog, body}, run, _now), do: {[{:ended, {:complete, body}}], run}
  defp take({:pong, %{body: body}}, run, _now), do: {[{:ended, {:complete, body}}], run}

  defp take({:error, error}, run, now) do
    cond do
      run.frames == [] or not never_ran?(error, now - run.sent_at) -> failed(run, error)
      run.cancelled? -> failed(run, Error.new(:cancelled, "cancelled before it was started"))
      # What else was on its way to the daemon is answered so, too; all of it was sent again.
      run.begun_again_at != nil and now - run.begun_again_at < @resume_again -> {[], run}
      true -> {again(run, now), %{run | begun_again_at: now}}
    end
  end

  # An `alive` is the session's; a kind that is not known is ignored.
  defp take(_other, run, _now), do: {[], run}

  defp failed(run, error), do: {[{:ended, {:error, error}}], run}

  # The daemon is sure that it never began: it waited when the broker died, or never arrived.
  defp never_ran?(%Error{type: :unknown_request, details: details}, age) do
    details["may_have_run"] == false or age < (details["never_ran_within_ms"] || 0)
  end

  defp never_ran?(_error, _age), do: false

  defp again(run, now) do
    [[kind, id | rest] | said] = run.frames
    {:ok, header} = rest |> Enum.at(0, "") |> Codec.unpack()
    left = max(1, run.deadline - @patience - now)
    request = Codec.frames(kind, id, Map.put(header, "timeout_ms", left), Enum.at(rest, 1, ""))
    for frames <- [request | said], do: {:transmit, frames}
  end

  # --- its tools' calls ----------------------------------------------------------------------------

  # It is in sequence, so its number is that of the last message.
  defp called(%{call_id: id, name: name} = call, run) do
    {is_news, calls} = Calls.take(run.calls, id, run.last)
    run = %{run | calls: calls}

    cond do
      not is_news or run.cancelled? -> {[], run}
      function = run.functions[name] -> {[{:call, call, function}], %{run | taken: MapSet.put(run.taken, id)}}
      true -> {[{:event, {:tool_call, call}}], run}
    end
  end

  defp uncalled(id, run) do
    {was_wanted, calls} = Calls.cancel(run.calls, id)
    actions = if was_wanted, do: [{:stop, id}, {:event, {:tool_cancelled, id}}], else: []
    {actions, %{run | calls: calls}}
  end

  @doc "A call was answered, by its function or by who asked: `body` is that of a `tool_result`, packed."
  @spec answer(t, String.t(), binary) :: {[action], t}
  def answer(run, call_id, packed) do
    frames = Codec.frames("tool_result", run.id, %{call_id: call_id}, packed)
    {[{:transmit, frames}], %{run | calls: Calls.answered(run.calls, call_id, packed)}}
  end

  defp refused(%{of: of, error: error}, %{kind: of} = run, _now), do: failed(run, error)

  # A broker that has just started holds too much: it is asked once more, and told again what it has not heard.
  defp refused(%{of: of, error: %{type: :overloaded}}, run, now) when of in ["resume", "tool_result"] do
    {[], %{run | resume_due: now + @resume_again}}
  end

  defp refused(%{call_id: id, error: %{type: type} = error}, run, _now) when id != nil and type != :unknown_request do
    run = %{run | calls: Calls.refused(run.calls, id)}

    if id in run.taken and id not in run.mended do
      {actions, run} = answer(run, id, ToolUtils.failure(if(error.message == "", do: "refused", else: error.message)))
      {actions, %{run | mended: MapSet.put(run.mended, id)}}
    else
      {[{:event, {:refused, error}}], run}
    end
  end

  defp refused(%{error: error}, run, _now), do: {[{:event, {:refused, error}}], run}

  # --- a new broker, a lost message ----------------------------------------------------------------

  @doc "Something may have been lost: what came since the last message is asked for, at most every two seconds."
  @spec resume(t, integer) :: {[action], t}
  def resume(%{kind: kind} = run, now) when kind in @runs do
    if run.resumed_at == nil or now - run.resumed_at >= @resume_again,
      do: ask(run, now),
      else: {[], %{run | resume_due: run.resumed_at + @resume_again}}
  end

  def resume(run, _now), do: {[], run}

  defp ask(run, now) do
    header = if run.credit, do: %{from: run.last + 1, upto: run.credit.granted}, else: %{from: run.last + 1}
    cancel = if run.cancelled?, do: [{:transmit, ["cancel", run.id]}], else: []
    run = %{run | resumed_at: now, resume_due: nil}
    {[{:transmit, Codec.message("resume", run.id, header)} | cancel], run}
  end

  defp resumed(%{gap?: true, from: from}, run) do
    text = "messages #{run.last + 1} to #{from - 1} are no longer kept"
    {[{:transmit, ["cancel", run.id]}, {:ended, {:error, Error.new(:gap, text)}}], run}
  end

  defp resumed(%{open_calls: listed, last: last}, run) do
    {lost, calls} = Calls.resumed(run.calls, listed, last || run.highest)
    again = for {id, packed} <- lost, do: {id, packed || ToolUtils.failure(@lost_answer)}

    Enum.reduce(again, {[], %{run | calls: calls}}, fn {id, packed}, {actions, run} ->
      {more, run} = answer(run, id, packed)
      {actions ++ more, run}
    end)
  end

  # --- what its owner says -------------------------------------------------------------------------

  @doc "It shall end; its own last message says how it did. Calls that come later are not run."
  @spec cancel(t) :: {[action], t}
  def cancel(run), do: {[{:transmit, ["cancel", run.id]}], %{run | cancelled?: true}}

  @doc """
  More is said to it.

  Raises `AxonCore.Error` (`:invalid_argument`) for what cannot be sent.
  """
  @spec steer(t, term, :asap | :when_idle) :: {[action], t}
  def steer(run, content, priority), do: steer(run, steer_body(content, priority))

  @doc "The body of a `steer`, packed: the caller does that, whose mistake it is if it cannot be sent."
  @spec steer_body(term, :asap | :when_idle) :: binary
  def steer_body(content, priority), do: Codec.pack(%{content: content, priority: priority})

  @doc "As `steer/3`, with a packed body."
  @spec steer(t, binary) :: {[action], t}
  def steer(run, packed) do
    frames = Codec.frames("steer", run.id, %{}, packed)
    # Until it is known to have begun, it may have to be said again with it.
    run = if run.frames == [], do: run, else: %{run | frames: run.frames ++ [frames]}
    {[{:transmit, frames}], run}
  end

  @doc "Who asked has taken a chunk or a log: credit is given for more, once half of the window is used."
  @spec took(t, pos_integer) :: {[action], t}
  def took(%{credit: nil} = run, _seq), do: {[], run}
  def took(run, seq), do: grant(run, Credit.took(run.credit, seq))

  # In `heard`, of what came in sequence and did not end the run.
  defp passed({[{:ended, _outcome}], _run} = taken, _event), do: taken
  defp passed({_actions, %{credit: nil}} = taken, _event), do: taken
  defp passed(taken, {kind, _event}) when kind in [:chunk, :log], do: taken

  defp passed({actions, run}, _event) do
    {granted, run} = grant(run, Credit.free(run.credit, run.last))
    {actions ++ granted, run}
  end

  defp grant(run, credit) do
    case Credit.grant(credit) do
      {nil, credit} -> {[], %{run | credit: credit}}
      {upto, credit} -> {[{:transmit, Codec.message("credit", run.id, %{upto: upto})}], %{run | credit: credit}}
    end
  end

  @doc "Time has passed."
  @spec tick(t, integer) :: {[action], t}
  def tick(run, now) do
    cond do
      now > run.deadline -> late(run)
      run.resume_due != nil and now >= run.resume_due -> ask(run, now)
      true -> {[], run}
    end
  end

  defp late(run) do
    cancel = if run?(run), do: [{:transmit, ["cancel", run.id]}], else: []
    {cancel ++ [{:ended, {:error, Error.new(:no_answer, "the daemon did not answer in time")}}], run}
  end
end
