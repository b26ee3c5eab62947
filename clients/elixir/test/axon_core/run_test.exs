defmodule AxonCore.RunTest do
  use ExUnit.Case, async: true
  alias AxonCore.{Chunk, Error, Message, Result, Run, Session}

  defp run(options \\ []) do
    {functions, options} = Keyword.pop(options, :functions, %{})
    Run.new("1", "run_stream", Map.new(options), %{agent: "echo", prompt: "x"}, functions, 0)
  end

  defp chunk(seq), do: %{"seq" => seq, "type" => "text", "data" => "#{seq}"}

  defp handle(run, messages, now \\ 0) do
    Enum.reduce(messages, {[], run}, fn {kind, body}, {actions, run} ->
      {:ok, message} = Message.decode(kind, "1", body)
      {more, run} = Run.handle_message(run, message, now)
      {actions ++ more, run}
    end)
  end

  defp sent(actions), do: for({:transmit, [kind | rest]} <- actions, do: {kind, header(rest)})
  defp header([_id, packed | _body]), do: packed |> AxonCore.Codec.unpack() |> elem(1)
  defp header([_id]), do: %{}

  test "rule 1: messages are handled in order only, and a gap is resumed once" do
    {actions, run} = handle(run(), [{"chunk", chunk(1)}, {"chunk", chunk(1)}, {"chunk", chunk(3)}, {"chunk", chunk(4)}])
    assert [{:event, {:chunk, %Chunk{seq: 1, type: :text, data: "1"}}}, {:transmit, _resume}] = actions
    assert sent(actions) == [{"resume", %{"from" => 2}}]
    {actions, _run} = handle(run, [{"chunk", chunk(2)}, {"chunk", chunk(4)}], 2_000)
    assert [{:event, {:chunk, %Chunk{seq: 2}}}, {:transmit, ["resume" | _]}] = actions
  end

  test "a last message behind a gap does not end the run before the missing messages arrive" do
    assert {[{:transmit, ["resume" | _]}], run} = handle(run(), [{"complete", %{"seq" => 2, "result" => "x"}}])
    messages = [{"chunk", chunk(1)}, {"complete", %{"seq" => 2, "result" => "x"}}]
    assert {[_chunk, {:ended, {:complete, %Result{result: "x"}}}], _run} = handle(run, messages)
  end

  test "a gap in the replay ends the run with an error" do
    {actions, _run} = handle(run(), [{"resumed", %{"from" => 5, "gap" => true}}])
    assert [{:transmit, ["cancel", "1"]}, {:ended, {:error, %Error{type: :gap}}}] = actions
  end

  test "an error ends the run, and an unknown error type is a string" do
    assert {[{:ended, {:error, %Error{type: :overloaded, retryable?: true}}}], _} =
             handle(run(), [{"error", %{"error_type" => "overloaded", "message" => "", "retryable" => true}}])

    assert {[{:ended, {:error, %Error{type: "quite_new"}}}], _} =
             handle(run(), [{"error", %{"error_type" => "quite_new"}}])
  end

  test "a request that never ran is sent again with the remaining time; one that may have run ends" do
    unknown = fn details -> {"error", %{"error_type" => "unknown_request", "details" => details}} end
    {actions, _} = handle(run(timeout_ms: 60_000), [unknown.(%{"may_have_run" => false})], 20_000)
    assert sent(actions) == [{"run_stream", %{"timeout_ms" => 40_000}}]
    recent = unknown.(%{"may_have_run" => true, "never_ran_within_ms" => 5_000})
    assert {[{:transmit, ["run_stream" | _]}], _} = handle(run(), [recent], 4_000)
    assert {[{:ended, {:error, %Error{type: :unknown_request}}}], _} = handle(run(), [recent], 6_000)
    {_, started} = handle(run(), [{"chunk", chunk(1)}])
    assert {[{:ended, _}], _} = handle(started, [unknown.(%{"may_have_run" => false})])
  end

  test "a cancelled request that never ran ends; user messages are sent again with their request" do
    never = {"error", %{"error_type" => "unknown_request", "details" => %{"may_have_run" => false}}}
    {_, cancelled} = Run.cancel(run())
    assert {[{:ended, {:error, %Error{type: :cancelled}}}], _} = handle(cancelled, [never])
    {_, steered} = Run.steer(run(), "more", :asap)
    {actions, _} = handle(steered, [never])
    assert [{"run_stream", _}, {"steer", _}] = sent(actions)
  end

  test "a call of a tool with a function is executed; other calls are events" do
    mine = fn _ -> {:ok, 1} end
    call = %{"seq" => 1, "call_id" => "c", "name" => "mine", "args" => %{}}

    assert {[{:call, %{call_id: "c", name: "mine"}, ^mine}], run} =
             handle(run(functions: %{"mine" => mine}), [{"tool_call", call}])

    assert {[{:event, {:tool_call, %{call_id: "d"}}}], run} =
             handle(run, [{"tool_call", %{call | "seq" => 2, "call_id" => "d", "name" => "other"}}])

    {[{:transmit, ["tool_result", "1", _, "packed"]}], run} = Run.answer(run, "c", "packed")
    {actions, run} = handle(run, [{"resumed", %{"from" => 3, "open_calls" => [%{"call_id" => "c"}], "last" => 2}}])
    assert [{:transmit, ["tool_result", "1", _, "packed"]}] = actions

    assert {[{:stop, "d"}, {:event, {:tool_cancelled, "d"}}], _} =
             handle(run, [{"tool_cancelled", %{"seq" => 3, "call_id" => "d"}}])
  end

  test "a function's refused answer is replaced with a failure once; a caller's refused answer is an event" do
    call = %{"seq" => 1, "call_id" => "c", "name" => "mine", "args" => %{}}

    refused =
      {"refused", %{"of" => "tool_result", "call_id" => "c", "error_type" => "invalid_request", "message" => "no"}}

    {_, run} = handle(run(functions: %{"mine" => & &1}), [{"tool_call", call}])
    {_, run} = Run.answer(run, "c", "packed")
    assert {[{:transmit, ["tool_result" | _]}], run} = handle(run, [refused])
    assert {[{:event, {:refused, %Error{}}}], _} = handle(run, [refused])
    {_, run} = handle(run(), [{"tool_call", call}])
    {_, run} = Run.answer(run, "c", "packed")
    assert {[{:event, {:refused, %Error{type: :invalid_request}}}], _} = handle(run, [refused])
  end

  test "a message refused by an overloaded broker in recovery is followed by a resume" do
    for of <- ["resume", "tool_result"] do
      refused = {"refused", %{"of" => of, "call_id" => "c", "error_type" => "overloaded"}}
      assert {[], run} = handle(run(), [refused], 1_000)
      assert {[], run} = Run.tick(run, 2_000)
      assert {[{:transmit, ["resume" | _]}], run} = Run.tick(run, 3_000)
      assert {[], _run} = Run.tick(run, 6_000)
    end
  end

  test "a refused request ends" do
    assert {[{:ended, {:error, %Error{type: :invalid_request}}}], _} =
             handle(run(), [{"refused", %{"of" => "run_stream", "error_type" => "invalid_request", "message" => ""}}])
  end

  test "rule 9: credit is granted when half of the window is used, and sent again with a resume" do
    run = run(credit: 10)
    assert {[], run} = Run.took(run, 5)
    assert {[{:transmit, ["credit", "1", _]}] = actions, run} = Run.took(run, 6)
    assert sent(actions) == [{"credit", %{"upto" => 16}}]
    {actions, _run} = Run.resume(run, 0)
    assert sent(actions) == [{"resume", %{"from" => 1, "upto" => 16}}]
  end

  test "rule 9: a message that needs no credit does not use up credit" do
    call = fn seq -> {"tool_call", %{"seq" => seq, "call_id" => "#{seq}", "name" => "x", "args" => %{}}} end
    {actions, run} = handle(run(credit: 4), Enum.map(1..6, call))
    assert sent(actions) == [{"credit", %{"upto" => 7}}, {"credit", %{"upto" => 10}}]
    {[_chunk], run} = handle(run, [{"chunk", chunk(7)}])
    assert {[], run} = Run.took(run, 7)
    {[{:event, {:log, %{"seq" => 8}}}], run} = handle(run, [{"log", %{"seq" => 8, "message" => "x"}}])
    assert {[], run} = Run.took(run, 8)
    {[_chunk], run} = handle(run, [{"chunk", chunk(9)}])
    {actions, _run} = Run.took(run, 9)
    assert sent(actions) == [{"credit", %{"upto" => 13}}]
  end

  test "rule 9: an acknowledged chunk is counted when calls have followed it" do
    call = {"tool_call", %{"seq" => 2, "call_id" => "c", "name" => "x", "args" => %{}}}
    {_, run} = handle(run(credit: 2), [{"chunk", chunk(1)}, call])
    assert {[{:transmit, ["credit" | _]}], _run} = Run.took(run, 1)
    assert {[{:ended, _}], _} = handle(run(credit: 1), [{"complete", %{"seq" => 1, "result" => "x"}}])
  end

  test "a user message is sent again once, although the daemon answers both it and the resume" do
    never = {"error", %{"error_type" => "unknown_request", "details" => %{"may_have_run" => false}}}
    {_, run} = Run.steer(run(), "more", :asap)
    {_, run} = Run.resume(run, 0)
    {actions, run} = handle(run, [never, never])
    assert [{"run_stream", _}, {"steer", _}] = sent(actions)
    assert {[], run} = handle(run, [never], 1_999)
    {actions, _} = handle(run, [never], 2_000)
    assert [{"run_stream", _}, {"steer", _}] = sent(actions)
  end

  test "a cancel is sent again with a resume, because the broker may have lost it" do
    {_, run} = Run.cancel(run())
    {actions, _} = Run.resume(run, 0)
    assert [{"resume", _}, {"cancel", _}] = sent(actions)
  end

  test "a request without an answer ends ten seconds after its timeout" do
    run = run(timeout_ms: 1_000)
    assert {[], _} = Run.tick(run, 11_000)
    assert {[{:transmit, ["cancel", "1"]}, {:ended, {:error, %Error{type: :no_answer}}}], _} = Run.tick(run, 11_001)
  end

  # --- sessions ------------------------------------------------------------------------------------

  defp session(run \\ run()) do
    {:ok, [{"1", {:transmit, ["run_stream" | _]}}], session} = Session.start(Session.new("me", 0), run, 0)
    session
  end

  defp alive(boot, open), do: ["alive", "", AxonCore.Codec.pack(%{boot: boot, open: open})]

  test "rule 6: all runs are resumed at a new broker" do
    {[], session} = Session.handle_frames(session(), alive("one", 1), 0)
    assert {[{"1", {:transmit, ["resume" | _]}}], _} = Session.handle_frames(session, alive("two", 1), 2_000)
  end

  test "rule 6: a new connection sends a ping and resumes all runs" do
    {actions, _session} = Session.connected(session(), 0)
    assert [{"probe-me", {:transmit, ["ping" | _]}}, {"1", {:transmit, ["resume" | _]}}] = actions
  end

  test "rule 6: runs are resumed if the count of open requests differs twice in a row" do
    {[], session} = Session.handle_frames(session(), alive("one", 2), 0)
    assert {[{"1", {:transmit, ["resume" | _]}}], _} = Session.handle_frames(session, alive("one", 2), 2_000)
  end

  test "rule 6: after a silence a ping is sent, and runs are resumed when it is answered" do
    {[], session} = Session.tick(session(), 5_000)
    {[{"probe-me", {:transmit, ["ping" | _]}}], session} = Session.tick(session, 5_001)
    assert {[], _} = Session.tick(session, 9_000)
    pong = ["pong", "probe-me", AxonCore.Codec.pack(%{boot: "one", shared: true})]
    assert {[{"1", {:transmit, ["resume" | _]}}, :shared], _} = Session.handle_frames(session, pong, 6_000)

    assert {[], _} = Session.tick(%{session | pinged_at: 0}, 60_000, false),
           "no ping is queued behind messages that wait to be sent"
  end

  test "a run of an earlier connection of this VM is cancelled once" do
    session = Session.new("me", 0, %{}, "ours-")
    chunk = &["chunk", &1, AxonCore.Codec.pack(chunk(7))]
    many = for number <- 1..1_000, do: "ours-#{number}"

    session =
      for id <- many, reduce: session do
        session ->
          assert {[{^id, {:transmit, ["cancel", ^id]}}], session} = Session.handle_frames(session, chunk.(id), 0)
          session
      end

    for id <- many, do: assert({[], _} = Session.handle_frames(session, chunk.(id), 0))
    assert {[], _} = Session.handle_frames(session, chunk.("another's"), 0)
    assert {[], _} = Session.handle_frames(session, ["complete", "ours-0", AxonCore.Codec.pack(%{seq: 8})], 0)

    pong = ["pong", "probe-me", AxonCore.Codec.pack(%{boot: "one", shared: true})]
    {_, session} = Session.handle_frames(session, pong, 0)
    assert {[], _} = Session.handle_frames(session, chunk.("ours-0"), 0), "the run may belong to the other process"
  end

  test "single frames are requested by the ping, the first message to a broker" do
    {actions, _} = Session.connected(Session.new("me", 0, %{frames: "single"}), 0)
    assert [{"ping", %{"frames" => "single", "instance" => "me"}}] = sent(for {_id, action} <- actions, do: action)
  end

  test "malformed frames do not end a silence" do
    {[], session} = Session.handle_frames(session(), ["alive"], 4_000)
    assert {[{"probe-me", {:transmit, ["ping" | _]}}], _} = Session.tick(session, 5_001)
  end

  test "a message larger than the daemon accepts is not sent" do
    pong = ["pong", "probe-me", AxonCore.Codec.pack(%{boot: "one", limits: %{max_body: 5}})]
    {_, session} = Session.handle_frames(Session.new("me", 0), pong, 0)
    assert {:error, %Error{type: :invalid_argument, message: message}} = Session.start(session, run(), 0)
    assert message =~ "at most 5"
    session = %{session(run()) | max_body: 5}
    assert {:error, %Error{message: message}} = Session.with_run(session, "1", &Run.steer(&1, "too long", :asap))
    assert message =~ "at most 5"
    assert :ended = Session.with_run(session, "2", &Run.cancel/1)
  end

  test "a used id is refused, messages of unknown ids are ignored, and a malformed message ends its run" do
    assert {:error, %Error{type: :invalid_argument}} = Session.start(session(), run(), 0)
    assert {[], _} = Session.handle_frames(session(), ["chunk", "2", AxonCore.Codec.pack(chunk(1))], 0)
    assert {actions, session} = Session.handle_frames(session(), ["chunk", "1", <<0xC1>>], 0)
    assert [{"1", {:transmit, ["cancel", "1"]}}, {"1", {:ended, {:error, %Error{type: :unreadable}}}}] = actions
    assert session.runs == %{}

    for {kind, body} <- [
          {"tool_call", %{seq: 1}},
          {"chunk", %{seq: 1}},
          {"resumed", %{gap: true, from: "x"}}
        ] do
      assert {[_ | _] = actions, %{runs: runs}} =
               Session.handle_frames(session(), [kind, "1", AxonCore.Codec.pack(body)], 0)

      assert {"1", {:ended, {:error, %Error{type: :unreadable}}}} = List.last(actions)
      assert runs == %{}
    end

    for malformed <- [%{boot: 5, limits: 7}, %{limits: %{max_body: "many"}}] do
      assert {_, %{max_body: 16_777_216}} =
               Session.handle_frames(session(), ["pong", "probe-me", AxonCore.Codec.pack(malformed)], 0)
    end
  end
end
