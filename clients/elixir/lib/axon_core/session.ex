defmodule AxonCore.Session do
  @moduledoc """
  All requests of one connection, and who is at its other end. No process, nothing is sent; time is passed in, in
  milliseconds.

  It watches what every client must (rule 6 of the protocol): a new `boot`, a count of open requests that differs twice in
  a row, a silence of five seconds, a reconnect. After each it asks for whatever may have been lost. Actions are those of
  `AxonCore.Run`, each with the id that it is about, and `:shared` when another process uses this identity.
  """

  alias AxonCore.{Codec, Error, Message, Run}

  # Bytes of a body, until a `pong` says what this daemon takes.
  @max_body 16 * 1024 * 1024

  defstruct [
    :boot,
    :greeting,
    :ours,
    :probe,
    :heard_at,
    :pinged_at,
    max_body: @max_body,
    runs: %{},
    orphans: MapSet.new(),
    miscounted?: false,
    silent?: false,
    shared?: false
  ]

  @type t :: %__MODULE__{runs: %{binary => Run.t()}}
  @type action :: {binary, Run.action()} | :shared

  @silence 5_000
  # Ids of an earlier connection's runs that are remembered.
  @orphans 10_000

  @doc """
  A connection that knows nobody. `instance` is random, one for each process; `more` is what else its pings say, which are
  the first that a broker hears: `frames: "single"`. What begins with `ours` is the id of a run that only a connection of
  this VM can have started, and that nobody goes on with when that has died.
  """
  @spec new(String.t(), integer, map, String.t() | nil) :: t
  def new(instance, now, more \\ %{}, ours \\ nil) do
    greeting = Map.put(more, :instance, instance)
    %__MODULE__{greeting: greeting, probe: "probe-" <> instance, heard_at: now, pinged_at: now, ours: ours}
  end

  @doc "A new request: what is to be sent for it."
  @spec start(t, Run.t(), integer) :: {:ok, [action], t} | {:error, Error.t()}
  def start(session, %Run{id: id}, _now) when is_map_key(session.runs, id) do
    {:error, Error.new(:invalid_argument, "a request with the id #{inspect(id)} is open already")}
  end

  def start(session, run, now) do
    request = {:transmit, hd(run.frames)}

    with :ok <- fits([request], session.max_body) do
      # While nothing was open, silence meant nothing.
      session = if session.runs == %{}, do: %{session | heard_at: now, pinged_at: now}, else: session
      {:ok, [{run.id, request}], put(session, run)}
    end
  end

  @doc "Does something with an open request; `:ended` where it has ended."
  @spec with_run(t, binary, (Run.t() -> {[Run.action()], Run.t()})) :: {:ok, [action], t} | {:error, Error.t()} | :ended
  def with_run(session, id, _what) when not is_map_key(session.runs, id), do: :ended

  def with_run(session, id, what) do
    {actions, _run} = done = what.(session.runs[id])

    with :ok <- fits(actions, session.max_body) do
      {actions, session} = applied(session, id, done)
      {:ok, actions, session}
    end
  end

  # The daemon would cut the connection for what is far too large, and say nothing.
  defp fits(actions, most) do
    case for {:transmit, frames} <- actions, frame <- frames, byte_size(frame) > most, do: byte_size(frame) do
      [] -> :ok
      [size | _] -> {:error, Error.new(:invalid_argument, "it has #{size} bytes; the daemon takes at most #{most}")}
    end
  end

  @doc """
  Handles a message, as its frames.

  They are decoded here and only here: what follows gets an `AxonCore.Message` and does not rescue anything.
  """
  @spec heard(t, Codec.frames(), integer) :: {[action], t}
  def heard(session, frames, now) do
    case Message.decode(frames) do
      {:ok, message} -> understood(%{session | heard_at: now}, message, now)
      {:error, %{part: :body} = malformed} -> unreadable(%{session | heard_at: now}, malformed)
      # Unreadable frames are no sign of life: a new broker does not know yet that this client wants single frames.
      {:error, %{part: :frames} = malformed} -> unreadable(session, malformed)
    end
  end

  defp understood(session, %Message{event: {:alive, alive}}, now), do: alive(session, alive, now)
  defp understood(session, %Message{event: {:pong, pong}} = message, now), do: pong(session, pong, message, now)
  defp understood(session, message, now), do: message(session, message, now)

  defp message(%{runs: runs} = session, %Message{id: id} = message, now) do
    case runs do
      %{^id => run} -> applied(session, id, Run.heard(run, message, now))
      _unknown -> orphaned(session, message)
    end
  end

  # A run that an earlier connection of this VM has left goes on for nobody. It is told so once: what was on its way
  # meanwhile is answered no more.
  defp orphaned(%{ours: ours, shared?: false} = session, %Message{id: id, event: {kind, _event}})
       when kind in [:chunk, :tool_call, :log] do
    if ours != nil and String.starts_with?(id, ours) and id not in session.orphans do
      orphans = if MapSet.size(session.orphans) < @orphans, do: session.orphans, else: MapSet.new()
      {[{id, {:transmit, ["cancel", id]}}], %{session | orphans: MapSet.put(orphans, id)}}
    else
      {[], session}
    end
  end

  defp orphaned(session, _message), do: {[], session}

  # Only the request that the message is for ends.
  defp unreadable(session, %{id: id, reason: reason}) when is_map_key(session.runs, id) do
    text = "the daemon's answer is nothing that this version understands: #{reason}"
    actions = [{:transmit, ["cancel", id]}, {:ended, {:error, Error.new(:unreadable, text)}}]
    applied(session, id, {actions, session.runs[id]})
  end

  defp unreadable(session, _malformed), do: {[], session}

  # Every two seconds while something is open.
  defp alive(session, alive, now) do
    wrong? = alive.open != Enum.count(session.runs, fn {_id, run} -> run.kind != "ping" end)
    {met, session} = met(session, alive.boot, now)
    {asked, session} = if wrong? and session.miscounted?, do: resume_all(session, now), else: {[], session}
    {met ++ asked, %{session | miscounted?: wrong? and not session.miscounted?}}
  end

  defp pong(session, pong, message, now) do
    {met, session} = met(session, pong.boot, now)
    # It is there, and yet had nothing to say about what is open here.
    {asked, session} = if session.silent?, do: resume_all(session, now), else: {[], session}
    shared = if pong.shared? and not session.shared?, do: [:shared], else: []
    most = pong.max_body || session.max_body
    session = %{session | silent?: false, shared?: pong.shared?, max_body: most}
    {refused, session} = each(session, &if_it_fits(&1, most))
    {ended, session} = message(session, message, now)
    {refused ++ met ++ asked ++ shared ++ ended, session}
  end

  # It was sent before the daemon had said how much it takes.
  defp if_it_fits(run, most) do
    case fits(Enum.map(run.frames, &{:transmit, &1}), most) do
      :ok -> {[], run}
      {:error, error} -> {[{:ended, {:error, error}}], run}
    end
  end

  defp met(%{boot: known} = session, boot, _now) when known in [nil, boot], do: {[], %{session | boot: boot}}
  defp met(session, boot, now), do: resume_all(%{session | boot: boot}, now)

  @doc "There is a connection: who is there is asked, and, since what was on its way may be lost, for that too."
  @spec connected(t, integer) :: {[action], t}
  def connected(session, now) do
    {asked, session} = resume_all(session, now)
    {[probe(session) | asked], %{session | pinged_at: now}}
  end

  defp resume_all(session, now), do: each(session, &Run.resume(&1, now))

  @doc """
  Time has passed: about once a second.

  `idle?` says that nothing waits to be sent: a question behind what waits already would only make it longer.
  """
  @spec tick(t, integer, boolean) :: {[action], t}
  def tick(session, now, idle? \\ true) do
    {actions, session} = each(session, &Run.tick(&1, now))

    if idle? and session.runs != %{} and now - max(session.heard_at, session.pinged_at) > @silence do
      {[probe(session) | actions], %{session | pinged_at: now, silent?: true}}
    else
      {actions, session}
    end
  end

  defp probe(session) do
    {session.probe, {:transmit, Codec.message("ping", session.probe, session.greeting)}}
  end

  defp each(session, what) do
    Enum.reduce(session.runs, {[], session}, fn {id, run}, {actions, session} ->
      {more, session} = applied(session, id, what.(run))
      {actions ++ more, session}
    end)
  end

  defp applied(session, id, {actions, run}) do
    ended? = Enum.any?(actions, &match?({:ended, _event}, &1))
    session = if ended?, do: %{session | runs: Map.delete(session.runs, id)}, else: put(session, run)
    {Enum.map(actions, &{id, &1}), session}
  end

  defp put(session, run), do: %{session | runs: Map.put(session.runs, run.id, run)}
end
