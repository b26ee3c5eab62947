defmodule AxonCore.Run do
  @moduledoc """
  State of one request, and the client's rules of the protocol for it.

  The module is pure: it has no process and sends nothing, and the time is an argument, in milliseconds. It implements
  the rules about sequence numbers (rule 1), resuming at a new broker (rule 6), tool calls that are executed once and
  whose answers are not lost (rule 7), and credit (rule 9). The
  [conformance suite](https://github.com/axon-zmq/axon_zmq/blob/main/docs/conformance.md) uses the same rule numbers.

  Each function returns the actions that its caller must perform, in order:

  | action | to do |
  |---|---|
  | `{:transmit, frames}` | send these frames to the daemon |
  | `{:event, event}` | send this event to the caller of the run |
  | `{:call, call, function}` | execute a tool |
  | `{:stop, call_id}` | stop a tool, because the daemon no longer waits for its answer |
  | `{:ended, event}` | send the last event to the caller of the run |
  """

  alias AxonCore.{Calls, Chunk, Codec, Credit, Error, Message, Result, ToolUtils}

  # `frames` contain prompts, which a crash report must not show.
  @derive {Inspect, except: [:frames, :functions]}
  @enforce_keys [:id, :kind, :sent_at, :deadline]
  defstruct [
    :id,
    :kind,
    :sent_at,
    :deadline,
    :credit,
    :restarted_at,
    :resumed_at,
    :resume_due,
    frames: [],
    functions: %{},
    calls: %Calls{},
    executed: MapSet.new(),
    replaced: MapSet.new(),
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
  # One resume covers a whole gap, so the messages that arrive behind the gap must not each request a replay.
  @resume_interval_ms 2_000
  # The daemon ends a run at its deadline and needs a moment to say so, so the client waits this much longer.
  @grace_ms 10_000
  # The daemon's default of `timeout_ms`.
  @default_timeout_ms 600_000
  # For requests that are not runs, such as `describe`.
  @request_timeout_ms 10_000
  @lost_answer "the answer was lost and is no longer kept"

  @doc """
  Returns the state of a new request, including the frames to send.

  `functions` are the functions of its tools by name; they are never sent. Raises `AxonCore.Error`
  (`:invalid_argument`) if header or body cannot be sent.
  """
  @spec new(binary, String.t(), map, map, %{String.t() => ToolUtils.tool_function()}, integer) :: t
  def new(id, kind, header, body, functions, now) do
    timeout = if kind in @runs, do: header[:timeout_ms] || @default_timeout_ms, else: @request_timeout_ms

    %__MODULE__{
      id: id,
      kind: kind,
      sent_at: now,
      deadline: now + timeout + @grace_ms,
      frames: [Codec.message(kind, id, header, body)],
      credit: header[:credit] && Credit.new(header[:credit]),
      functions: functions
    }
  end

  @doc "Returns whether the request starts a run, which can be resumed and cancelled."
  @spec run?(t) :: boolean
  def run?(run), do: run.kind in @runs

  # --- received messages ---------------------------------------------------------------------------

  @doc "Handles a received message of this request."
  @spec handle_message(t, Message.t(), integer) :: {[action], t}
  def handle_message(run, %Message{seq: nil, event: event}, now), do: take(event, run, now)

  def handle_message(run, %Message{seq: seq, event: event}, now) do
    run = %{run | highest: max(run.highest, seq)}

    cond do
      # A numbered message comes from a worker, so the run has started, and its request need not be sent again.
      seq == run.last + 1 -> event |> take(%{run | last: seq, frames: []}, now) |> grant_unless_credited(event)
      seq <= run.last -> {[], run}
      true -> resume(run, now)
    end
  end

  defp take({kind, _event} = event, run, _now) when kind in [:chunk, :log, :accepted], do: {[{:event, event}], run}
  defp take({:tool_call, call}, run, _now), do: tool_called(call, run)
  defp take({:tool_cancelled, call_id}, run, _now), do: tool_cancelled(call_id, run)
  defp take({:resumed, resumed}, run, _now), do: resumed(resumed, run)
  defp take({:refused, refused}, run, now), do: refused(refused, run, now)
  defp take({:complete, result}, run, _now), do: {[{:ended, {:complete, result}}], run}
  defp take({:catalog, body}, run, _now), do: {[{:ended, {:complete, body}}], run}
  defp take({:pong, %{body: body}}, run, _now), do: {[{:ended, {:complete, body}}], run}

  defp take({:error, error}, run, now) do
    cond do
      run.frames == [] or not never_ran?(error, now - run.sent_at) -> failed(run, error)
      run.cancelled? -> failed(run, Error.new(:cancelled, "cancelled before it was started"))
      # The daemon answers each message in flight with this error. All of them were sent again with the request.
      run.restarted_at != nil and now - run.restarted_at < @resume_interval_ms -> {[], run}
      true -> {send_again(run, now), %{run | restarted_at: now}}
    end
  end

  # The session handles `alive`, and unknown kinds are ignored.
  defp take(_other, run, _now), do: {[], run}

  defp failed(run, error), do: {[{:ended, {:error, error}}], run}

  # The daemon is certain that the run never started: it was queued when the broker died, or never reached the broker.
  defp never_ran?(%Error{type: :unknown_request, details: details}, age) do
    details["may_have_run"] == false or age < (details["never_ran_within_ms"] || 0)
  end

  defp never_ran?(_error, _age), do: false

  # The request and the user messages that followed it, with the time that is left until the original deadline.
  defp send_again(run, now) do
    [[kind, id | rest] | steers] = run.frames
    {:ok, header} = rest |> Enum.at(0, "") |> Codec.unpack()
    timeout = max(1, run.deadline - @grace_ms - now)
    request = Codec.frames(kind, id, Map.put(header, "timeout_ms", timeout), Enum.at(rest, 1, ""))
    for frames <- [request | steers], do: {:transmit, frames}
  end

  # --- tool calls ----------------------------------------------------------------------------------

  # Tool calls are taken in sequence, so the number of this one is `run.last`.
  defp tool_called(%{call_id: id, name: name} = call, run) do
    {new?, calls} = Calls.take(run.calls, id, run.last)
    run = %{run | calls: calls}

    cond do
      not new? or run.cancelled? -> {[], run}
      function = run.functions[name] -> {[{:call, call, function}], %{run | executed: MapSet.put(run.executed, id)}}
      true -> {[{:event, {:tool_call, call}}], run}
    end
  end

  defp tool_cancelled(id, run) do
    {open?, calls} = Calls.cancel(run.calls, id)
    actions = if open?, do: [{:stop, id}, {:event, {:tool_cancelled, id}}], else: []
    {actions, %{run | calls: calls}}
  end

  @doc "Answers a tool call with `packed`, the packed body of a `tool_result`."
  @spec answer(t, String.t(), binary) :: {[action], t}
  def answer(run, call_id, packed) do
    frames = Codec.frames("tool_result", run.id, %{call_id: call_id}, packed)
    {[{:transmit, frames}], %{run | calls: Calls.answered(run.calls, call_id, packed)}}
  end

  defp refused(%{of: of, error: error}, %{kind: of} = run, _now), do: failed(run, error)

  # A broker in recovery holds messages only up to a limit and refuses the rest. A later resume makes up for a refused
  # `resume` and for a refused `tool_result`: its `resumed` lists the open calls, whose answers are then sent again.
  defp refused(%{of: of, error: %{type: :overloaded}}, run, now) when of in ["resume", "tool_result"] do
    {[], %{run | resume_due: now + @resume_interval_ms}}
  end

  defp refused(%{call_id: id, error: %{type: type} = error}, run, _now) when id != nil and type != :unknown_request do
    run = %{run | calls: Calls.refused(run.calls, id)}

    # The refused answer of a function, such as one that does not fit `returns`, is replaced once with a failure, so
    # that the model can react. A caller that answers itself gets the refusal and may answer again.
    if id in run.executed and id not in run.replaced do
      {actions, run} = answer(run, id, ToolUtils.failure(if(error.message == "", do: "refused", else: error.message)))
      {actions, %{run | replaced: MapSet.put(run.replaced, id)}}
    else
      {[{:event, {:refused, error}}], run}
    end
  end

  defp refused(%{error: error}, run, _now), do: {[{:event, {:refused, error}}], run}

  # --- resuming ------------------------------------------------------------------------------------

  @doc "Requests the messages after the last received one, because some may be lost; at most every two seconds."
  @spec resume(t, integer) :: {[action], t}
  def resume(%{kind: kind} = run, now) when kind in @runs do
    if run.resumed_at == nil or now - run.resumed_at >= @resume_interval_ms,
      do: request_replay(run, now),
      else: {[], %{run | resume_due: run.resumed_at + @resume_interval_ms}}
  end

  def resume(run, _now), do: {[], run}

  # Credit and cancellation are sent again too, because the broker may have lost them.
  defp request_replay(run, now) do
    header = if run.credit, do: %{from: run.last + 1, upto: run.credit.granted}, else: %{from: run.last + 1}
    cancel = if run.cancelled?, do: [{:transmit, ["cancel", run.id]}], else: []
    run = %{run | resumed_at: now, resume_due: nil}
    {[{:transmit, Codec.message("resume", run.id, header)} | cancel], run}
  end

  defp resumed(%{gap?: true, from: from}, run) do
    text = "messages #{run.last + 1} to #{from - 1} of the run were lost, and the daemon no longer keeps them"
    {[{:transmit, ["cancel", run.id]}, {:ended, {:error, Error.new(:gap, text)}}], run}
  end

  defp resumed(%{open_calls: listed, last: last}, run) do
    {lost, calls} = Calls.resumed(run.calls, listed, last || run.highest)
    answers = for {id, packed} <- lost, do: {id, packed || ToolUtils.failure(@lost_answer)}

    Enum.reduce(answers, {[], %{run | calls: calls}}, fn {id, packed}, {actions, run} ->
      {more, run} = answer(run, id, packed)
      {actions ++ more, run}
    end)
  end

  # --- requests of the caller ----------------------------------------------------------------------

  @doc "Requests the cancellation of the run. Tool calls that arrive later are not executed."
  @spec cancel(t) :: {[action], t}
  def cancel(run), do: {[{:transmit, ["cancel", run.id]}], %{run | cancelled?: true}}

  @doc """
  Sends a user message to the run.

  Raises `AxonCore.Error` (`:invalid_argument`) if the content cannot be sent.
  """
  @spec steer(t, term, :asap | :when_idle) :: {[action], t}
  def steer(run, content, priority), do: steer(run, steer_body(content, priority))

  @doc "Packs the body of a `steer`, in the calling process, so that content which cannot be sent raises there."
  @spec steer_body(term, :asap | :when_idle) :: binary
  def steer_body(content, priority), do: Codec.pack(%{content: content, priority: priority})

  @doc "Sends a user message as `steer/3` does, with a body that is packed already."
  @spec steer(t, binary) :: {[action], t}
  def steer(run, packed) do
    frames = Codec.frames("steer", run.id, %{}, packed)
    # Until the first message of the run arrives, the request may have to be sent again, and this message with it.
    run = if run.frames == [], do: run, else: %{run | frames: run.frames ++ [frames]}
    {[{:transmit, frames}], run}
  end

  @doc "Records that the caller has processed all messages up to `seq`, and grants more credit if half of it is used."
  @spec took(t, pos_integer) :: {[action], t}
  def took(%{credit: nil} = run, _seq), do: {[], run}
  def took(run, seq), do: grant(run, Credit.took(run.credit, seq))

  # Chunks and logs use credit until the caller has processed them. Other messages need none, so they raise the limit.
  defp grant_unless_credited({[{:ended, _outcome}], _run} = handled, _event), do: handled
  defp grant_unless_credited({_actions, %{credit: nil}} = handled, _event), do: handled
  defp grant_unless_credited(handled, {kind, _event}) when kind in [:chunk, :log], do: handled

  defp grant_unless_credited({actions, run}, _event) do
    {granted, run} = grant(run, Credit.free(run.credit, run.last))
    {actions ++ granted, run}
  end

  defp grant(run, credit) do
    case Credit.grant(credit) do
      {nil, credit} -> {[], %{run | credit: credit}}
      {upto, credit} -> {[{:transmit, Codec.message("credit", run.id, %{upto: upto})}], %{run | credit: credit}}
    end
  end

  @doc "Handles the passing of time: a request whose time is up ends, and a due resume is sent."
  @spec tick(t, integer) :: {[action], t}
  def tick(run, now) do
    cond do
      now > run.deadline -> timed_out(run)
      run.resume_due != nil and now >= run.resume_due -> request_replay(run, now)
      true -> {[], run}
    end
  end

  defp timed_out(run) do
    cancel = if run?(run), do: [{:transmit, ["cancel", run.id]}], else: []
    text = "no last message within #{run.deadline - run.sent_at} ms; check that the daemon is running and reachable"
    {cancel ++ [{:ended, {:error, Error.new(:no_answer, text)}}], run}
  end
end
