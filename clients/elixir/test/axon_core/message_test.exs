defmodule AxonCore.MessageTest do
  use ExUnit.Case, async: true
  alias AxonCore.{Chunk, Codec, Error, Message, Result, Run, Session}

  test "each kind of message is decoded" do
    call = %{"call_id" => "c", "name" => "add", "args" => %{"a" => 1}}

    for {kind, body, event} <- [
          {"alive", %{"boot" => "one", "open" => 2}, {:alive, %{boot: "one", open: 2}}},
          {"accepted", %{"duplicate" => true}, {:accepted, true}},
          {"log", %{"seq" => 1, "message" => "x"}, {:log, %{"seq" => 1, "message" => "x"}}},
          {"catalog", %{"agents" => []}, {:catalog, %{"agents" => []}}},
          {"tool_call", Map.put(call, "seq", 1), {:tool_call, %{call_id: "c", name: "add", args: %{"a" => 1}}}},
          {"tool_cancelled", %{"seq" => 1, "call_id" => "c"}, {:tool_cancelled, "c"}},
          {"resumed", %{"from" => 3, "gap" => false, "open_calls" => [call], "last" => 2},
           {:resumed, %{from: 3, gap?: false, open_calls: ["c"], last: 2}}},
          {"news", %{"seq" => "of another protocol"}, :unknown}
        ] do
      assert {:ok, %Message{id: "1", event: ^event}} = Message.decode(kind, "1", body)
    end

    assert {:ok, %Message{seq: 1, event: {:chunk, %Chunk{type: :text, data: "x"}}}} =
             Message.decode("chunk", "1", %{"seq" => 1, "type" => "text", "data" => "x"})

    assert {:ok, %Message{seq: nil, event: {:complete, %Result{result: 1}}}} =
             Message.decode("complete", "1", %{"result" => 1})

    assert {:ok, %Message{event: {:error, %Error{type: :overloaded}}}} =
             Message.decode("error", "1", %{"error_type" => "overloaded"})

    assert {:ok, %Message{event: {:refused, %{of: "run", call_id: nil, error: %Error{type: :invalid_request}}}}} =
             Message.decode("refused", "1", %{"of" => "run", "error_type" => "invalid_request"})

    pong = %{"boot" => "one", "shared" => true, "limits" => %{"max_body" => 5}}

    assert {:ok, %Message{event: {:pong, %{boot: "one", shared?: true, max_body: 5, body: ^pong}}}} =
             Message.decode("pong", "1", pong)
  end

  @malformed [
    {"chunk", %{"type" => "text"}, "seq"},
    {"chunk", %{"seq" => 0, "type" => "text"}, "seq"},
    {"chunk", %{"seq" => "1", "type" => "text"}, "seq"},
    {"chunk", %{"seq" => 1}, "type"},
    {"tool_call", %{"call_id" => "c", "name" => "x", "args" => %{}}, "seq"},
    {"tool_call", %{"seq" => 1, "name" => "x", "args" => %{}}, "call_id"},
    {"tool_call", %{"seq" => 1, "call_id" => <<255>>, "name" => "x", "args" => %{}}, "call_id"},
    {"tool_call", %{"seq" => 1, "call_id" => "c", "args" => %{}}, "name"},
    {"tool_call", %{"seq" => 1, "call_id" => "c", "name" => "x", "args" => []}, "args"},
    {"tool_cancelled", %{"seq" => 1}, "call_id"},
    {"resumed", %{"gap" => true}, "from"},
    {"resumed", %{"gap" => true, "from" => "x"}, "from"},
    {"resumed", %{"open_calls" => "x"}, "open_calls"},
    {"resumed", %{"open_calls" => [%{}]}, "open_calls"},
    {"resumed", %{"last" => "x"}, "last"},
    {"refused", %{"of" => 5}, "of"},
    {"refused", %{"message" => %{}}, "message"},
    {"complete", %{"seq" => -1}, "seq"},
    {"complete", %{"messages" => %{}}, "messages"},
    {"complete", %{"messages" => [5]}, "messages"},
    {"complete", %{"usage" => 5}, "usage"},
    {"error", %{"details" => 5}, "details"},
    {"error", %{"error_type" => 5}, "error_type"},
    {"error", %{"message" => <<255>>}, "message"},
    {"error", %{"details" => %{"never_ran_within_ms" => "long"}}, "never_ran_within_ms"}
  ]

  test "the error about a malformed message names the kind and the field" do
    for {kind, body, field} <- @malformed do
      assert {:error, %{part: :body, id: "1", reason: reason}} = Message.decode(kind, "1", body)
      assert reason =~ ~r/\Amalformed `#{kind}` message: expected #{field} to be /
    end

    assert {:error, %{part: :frames, id: "1"}} = Message.decode(["chunk", "1", <<0xC1>>])
    assert {:error, %{part: :frames, id: nil}} = Message.decode(["alive"])
  end

  test "a malformed message ends its own request and no other" do
    for {kind, body, field} <- @malformed do
      session = Enum.reduce(["1", "2"], Session.new("me", 0), &started/2)
      {actions, session} = Session.handle_frames(session, [kind, "1", Codec.pack_plain(body)], 0)

      assert [{"1", {:transmit, ["cancel", "1"]}}, {"1", {:ended, {:error, %Error{type: :unreadable} = error}}}] =
               actions

      assert error.message =~ field
      assert Map.keys(session.runs) == ["2"]
    end
  end

  test "an exception in a handler is not rescued" do
    session = started("1", Session.new("me", 0))
    broken = put_in(session.runs["1"].calls, %{})
    call = %{"seq" => 1, "call_id" => "c", "name" => "x", "args" => %{}}
    assert_raise KeyError, fn -> Session.handle_frames(broken, ["tool_call", "1", Codec.pack_plain(call)], 0) end
  end

  defp started(id, session) do
    {:ok, _actions, session} = Session.start(session, Run.new(id, "run_stream", %{}, %{agent: "echo"}, %{}, 0), 0)
    session
  end
end
