defmodule AxonCore.Session do
  @moduledoc """
  State of one connection: its open requests, and the last known state of the broker.

  The module is pure: it has no process and sends nothing, and the time is an argument, in milliseconds. It detects the
  four signs that messages may be lost (rule 6 of the protocol), and then resumes all runs:

  - an `alive` or `pong` has a new `boot`, so the broker was restarted;
  - the transport has reconnected;
  - the broker's count of open requests differs from the client's twice in a row;
  - no message arrived for five seconds while requests were open, and then the broker answered a `ping`.

  It returns the actions of `AxonCore.Run`, each with the id of its request, and the action `:shared`, which reports
  that another process uses this identity.
  """

  alias AxonCore.{Codec, Error, Message, Run}

  # The daemon's default of `max_body`, used until a `pong` has the actual value.
  @default_max_body 16 * 1024 * 1024

  defstruct [
    :boot,
    :greeting,
    :id_prefix,
    :probe,
    :received_at,
    :pinged_at,
    max_body: @default_max_body,
    runs: %{},
    orphans: MapSet.new(),
    miscounted?: false,
    silent?: false,
    shared?: false
  ]

  @type t :: %__MODULE__{runs: %{binary => Run.t()}}
  @type action :: {binary, Run.action()} | :shared

  @silence_ms 5_000
  # Limit for the remembered ids of orphans, which are runs that an earlier connection of this VM started. When the
  # limit is reached, all of them are forgotten.
  @max_orphans 10_000

  @doc """
  Returns the state of a new connection.

  - `instance` is random and different for each client process. The daemon no longer uses it.
  - `options` are further header keys of each `ping`, such as `frames: "single"`. A `ping` is the first message on a
    connection, so they apply to all messages of the broker.
  - `id_prefix` is the prefix of the run ids that this VM generates. A run with this prefix that is unknown here was
    started by an earlier connection of this VM, and no process waits for it any more.
  """
  @spec new(String.t(), integer, map, String.t() | nil) :: t
  def new(instance, now, options \\ %{}, id_prefix \\ nil) do
    greeting = Map.put(options, :instance, instance)
    probe = "probe-" <> instance
    %__MODULE__{greeting: greeting, probe: probe, received_at: now, pinged_at: now, id_prefix: id_prefix}
  end

  @doc "Adds a request, and returns the actions that send it."
  @spec start(t, Run.t(), integer) :: {:ok, [action], t} | {:error, Error.t()}
  def start(session, %Run{id: id}, _now) when is_map_key(session.runs, id) do
    {:error, Error.new(:invalid_argument, "request id #{inspect(id)} is in use by an open request; choose another id")}
  end

  def start(session, run, now) do
    request = {:transmit, hd(run.frames)}

    with :ok <- check_size([request], session.max_body) do
      # The daemon sends nothing while no request is open, so the silence starts to count now.
      session = if session.runs == %{}, do: %{session | received_at: now, pinged_at: now}, else: session
      {:ok, [{run.id, request}], put(session, run)}
    end
  end

  @doc "Applies a function to an open request; returns `:ended` if the request has ended."
  @spec with_run(t, binary, (Run.t() -> {[Run.action()], Run.t()})) :: {:ok, [action], t} | {:error, Error.t()} | :ended
  def with_run(session, id, _fun) when not is_map_key(session.runs, id), do: :ended

  def with_run(session, id, fun) do
    {actions, _run} = updated = fun.(session.runs[id])

    with :ok <- check_size(actions, session.max_body) do
      {actions, session} = apply_update(session, id, updated)
      {:ok, actions, session}
    end
  end

  # Checked here, because the broker closes the connection without an error if a frame exceeds twice `max_body`.
  defp check_size(actions, max_body) do
    case for {:transmit, frames} <- actions, frame <- frames, byte_size(frame) > max_body, do: byte_size(frame) do
      [] ->
        :ok

      [size | _] ->
        text = "message too large: a frame has #{size} bytes, and the daemon accepts at most #{max_body} (max_body)"
        {:error, Error.new(:invalid_argument, text)}
    end
  end

  @doc """
  Handles the frames of a received message.

  Frames are decoded only here. All other functions receive an `AxonCore.Message` and rescue nothing.
  """
  @spec handle_frames(t, Codec.frames(), integer) :: {[action], t}
  def handle_frames(session, frames, now) do
    case Message.decode(frames) do
      {:ok, message} -> decoded(%{session | received_at: now}, message, now)
      {:error, %{part: :body} = malformed} -> unreadable(%{session | received_at: now}, malformed)
      # Malformed frames do not end the silence: a new broker may send them until a `ping` asks for single frames.
      {:error, %{part: :frames} = malformed} -> unreadable(session, malformed)
    end
  end

  defp decoded(session, %Message{event: {:alive, alive}}, now), do: alive(session, alive, now)
  defp decoded(session, %Message{event: {:pong, pong}} = message, now), do: pong(session, pong, message, now)
  defp decoded(session, message, now), do: message(session, message, now)

  defp message(%{runs: runs} = session, %Message{id: id} = message, now) do
    case runs do
      %{^id => run} -> apply_update(session, id, Run.handle_message(run, message, now))
      _unknown -> orphaned(session, message)
    end
  end

  # Cancels a run that an earlier connection of this VM started. One cancel is enough: messages that arrive after it
  # were in flight already. If the identity is shared, the run may belong to the other process and is left alone.
  defp orphaned(%{id_prefix: prefix, shared?: false} = session, %Message{id: id, event: {kind, _event}})
       when kind in [:chunk, :tool_call, :log] do
    if prefix != nil and String.starts_with?(id, prefix) and id not in session.orphans do
      orphans = if MapSet.size(session.orphans) < @max_orphans, do: session.orphans, else: MapSet.new()
      {[{id, {:transmit, ["cancel", id]}}], %{session | orphans: MapSet.put(orphans, id)}}
    else
      {[], session}
    end
  end

  defp orphaned(session, _message), do: {[], session}

  # A malformed message ends its own request and no other.
  defp unreadable(session, %{id: id, reason: reason}) when is_map_key(session.runs, id) do
    text = "cannot decode a message of the daemon: #{reason}; check that daemon and axon_core have the same version"
    actions = [{:transmit, ["cancel", id]}, {:ended, {:error, Error.new(:unreadable, text)}}]
    apply_update(session, id, {actions, session.runs[id]})
  end

  defp unreadable(session, _malformed), do: {[], session}

  # The broker sends `alive` every two seconds while a request is open. One differing count is normal, because a
  # request or an end may be in flight; two in a row mean that one of them was lost.
  defp alive(session, alive, now) do
    differs? = alive.open != Enum.count(session.runs, fn {_id, run} -> run.kind != "ping" end)
    {restarted, session} = check_boot(session, alive.boot, now)
    {resumed, session} = if differs? and session.miscounted?, do: resume_all(session, now), else: {[], session}
    {restarted ++ resumed, %{session | miscounted?: differs? and not session.miscounted?}}
  end

  defp pong(session, pong, message, now) do
    {restarted, session} = check_boot(session, pong.boot, now)
    # The broker is alive, but sent nothing about the open requests: messages were lost.
    {resumed, session} = if session.silent?, do: resume_all(session, now), else: {[], session}
    shared = if pong.shared? and not session.shared?, do: [:shared], else: []
    max_body = pong.max_body || session.max_body
    session = %{session | silent?: false, shared?: pong.shared?, max_body: max_body}
    {too_large, session} = each_run(session, &end_if_too_large(&1, max_body))
    {ended, session} = message(session, message, now)
    {too_large ++ restarted ++ resumed ++ shared ++ ended, session}
  end

  # The request may have been sent before the daemon's limit was known.
  defp end_if_too_large(run, max_body) do
    case check_size(Enum.map(run.frames, &{:transmit, &1}), max_body) do
      :ok -> {[], run}
      {:error, error} -> {[{:ended, {:error, error}}], run}
    end
  end

  defp check_boot(%{boot: known} = session, boot, _now) when known in [nil, boot], do: {[], %{session | boot: boot}}
  defp check_boot(session, boot, now), do: resume_all(%{session | boot: boot}, now)

  @doc "Handles a new transport: sends a `ping`, and resumes all runs, because messages in flight may be lost."
  @spec connected(t, integer) :: {[action], t}
  def connected(session, now) do
    {resumed, session} = resume_all(session, now)
    {[probe(session) | resumed], %{session | pinged_at: now}}
  end

  defp resume_all(session, now), do: each_run(session, &Run.resume(&1, now))

  @doc """
  Handles the passing of time; to be called about once a second.

  `idle?` is whether no message waits to be sent. While messages wait, the daemon is unreachable, and a `ping` would
  only make the queue longer.
  """
  @spec tick(t, integer, boolean) :: {[action], t}
  def tick(session, now, idle? \\ true) do
    {actions, session} = each_run(session, &Run.tick(&1, now))

    if idle? and session.runs != %{} and now - max(session.received_at, session.pinged_at) > @silence_ms do
      {[probe(session) | actions], %{session | pinged_at: now, silent?: true}}
    else
      {actions, session}
    end
  end

  defp probe(session) do
    {session.probe, {:transmit, Codec.message("ping", session.probe, session.greeting)}}
  end

  defp each_run(session, fun) do
    Enum.reduce(session.runs, {[], session}, fn {id, run}, {actions, session} ->
      {more, session} = apply_update(session, id, fun.(run))
      {actions ++ more, session}
    end)
  end

  defp apply_update(session, id, {actions, run}) do
    ended? = Enum.any?(actions, &match?({:ended, _event}, &1))
    session = if ended?, do: %{session | runs: Map.delete(session.runs, id)}, else: put(session, run)
    {Enum.map(actions, &{id, &1}), session}
  end

  defp put(session, run), do: %{session | runs: Map.put(session.runs, run.id, run)}
end
