"""The Elixir code of the documentation, run with real chumak and Msgpax against the real daemon.

Needs `elixir` and, in AXON_ELIXIR_DEPS, a folder with chumak/ebin and msgpax/ebin; skipped without.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from tests import fixtures, snippets
from tests.conftest import WAIT_TIMEOUT_S, running

pytestmark = pytest.mark.skipif(snippets.no_elixir() is not None, reason=str(snippets.no_elixir()))

PAGES = [*sorted(snippets.DOCS.rglob("*.md")), snippets.ROOT / "README.md"]
SCRIPTS = {str(script): script for page in PAGES for script in snippets.scripts(page, "elixir")}
MODULE = SCRIPTS["elixir.md-elixir-elixir"]
"""The page with the module to copy."""


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=str)
def test_elixir_of_the_pages_prints_what_they_say(daemon, tmp_path, script):
    done = snippets.run_script(script, daemon.endpoint, tmp_path)
    assert "warning:" not in done.errors  # from the compiler


def test_pieces_are_printed_as_they_come(daemon, tmp_path):
    done = snippets.run_script(MODULE, daemon.endpoint, tmp_path)
    came = [moment for moment, line in done.lines if line.startswith("piece 0")][:5]
    assert came[4] - came[0] > 0.4  # 200 ms apart, where nothing else keeps the machine busy


FOLLOW = """
defmodule Follow do
  def pieces(id, broken \\\\ fn -> :ok end) do
    receive do
      {:axon, ^id, "chunk", %{"seq" => seq, "data" => text}} ->
        IO.puts("#{seq} #{String.trim(text)}")
        if seq == 3, do: broken.()
        pieces(id, broken)

      {:axon, ^id, kind, body} when kind in ["complete", "error"] ->
        IO.puts("#{kind} #{body["seq"]} #{body["error_type"]}")

      {:axon, ^id, kind, body} ->
        IO.puts("#{kind} #{body["from"]}")
        pieces(id, broken)
    end
  end
end

speaker = %{model: "synthetic:tokens=20,delay_ms=100,size=3"}
"""
"""To be put behind the page's module; `broken` is called in the middle of a stream."""

ALL_PIECES = [*(f"{seq} {seq - 1:02}" for seq in range(1, 21)), "complete 21"]


@pytest.mark.parametrize("process", ["socket", "peer", "sender", "receiver"])
def test_a_stream_goes_on_under_the_same_identity_when_a_process_of_the_socket_dies(daemon, tmp_path, process):
    more = f"""
    broken = fn -> Process.exit(:sys.get_state(MyApp.Axon).{process}, :kill) end
    Follow.pieces(MyApp.Axon.request("run_stream", %{{agent: speaker, prompt: "?"}}), broken)
    """
    done = _with_module(daemon.endpoint, FOLLOW + more, tmp_path)
    assert "resumed 4" in done
    assert [line for line in done if not line.startswith("resumed")] == ALL_PIECES


@pytest.mark.timeout(90)
def test_a_stream_goes_on_when_the_broker_is_killed_and_started_again(tmp_path):
    more = 'Follow.pieces(MyApp.Axon.request("run_stream", %{agent: speaker, prompt: "?"}))'
    with running("run_stream") as own:

        def break_it(line: str) -> None:
            if line.startswith("3 "):
                own.kill("broker")
                own.start_broker()

        done = _with_module(own.endpoint, FOLLOW.replace("delay_ms=100", "delay_ms=300") + more, tmp_path, break_it)
    assert [line for line in done if not line.startswith("resumed")] == ALL_PIECES


def test_a_request_that_is_sent_while_there_is_no_daemon_is_answered_when_there_is(tmp_path):
    more = """
    id = MyApp.Axon.request("run", %{agent: "echo", prompt: "Hello"})
    IO.puts("asked")
    {:ok, body} = MyApp.Answer.of(id)
    IO.puts(body["result"])
    """
    with running("run") as own:
        own.kill("broker")
        later = threading.Timer(1.5, own.start_broker)
        later.start()
        assert _with_module(own.endpoint, more, tmp_path) == ["asked", "Hello"]
        later.join()


TOOL = """
defmodule Tool do
  @anything %{type: "object"}

  def named(name, function, more \\\\ %{}) do
    Map.merge(%{name: name, description: "A tool.", parameters: @anything, run: function}, more)
  end

  def ask(tools, calls) do
    prompt = "[" <> Enum.map_join(calls, ",", &~s({"name": "#{&1}", "args": {"call": "#{&1}"}})) <> "]"
    MyApp.Axon.request("run", %{agent: %{model: "tools"}, prompt: prompt, tools: tools})
  end

  def results({:ok, body}), do: IO.puts(body["result"])
end
"""
"""To be put behind the page's module: tools of any arguments, and a run that calls them all at once."""


@pytest.mark.timeout(90)
@pytest.mark.parametrize("when", ["while there is no broker", "after the restart"])
def test_a_tool_runs_once_when_the_broker_is_killed_meanwhile_and_started_again(tmp_path, when):
    may_end = tmp_path / "the tool may end"
    more = f"""
    defmodule Slow do
      def wait(path), do: if(File.exists?(path), do: IO.puts("tool ends"), else: wait_more(path))
      defp wait_more(path), do: (Process.sleep(20); wait(path))
    end

    slow = fn _ -> IO.puts("tool runs"); Slow.wait("{may_end}"); {{:ok, 7}} end
    [Tool.named("slow", slow)] |> Tool.ask(["slow"]) |> MyApp.Answer.of() |> Tool.results()
    """
    with running("run") as own:

        def break_it(line: str) -> None:
            if line.startswith("tool runs"):
                own.kill("broker")
                if when == "after the restart":
                    own.start_broker()
                    own.wait(run=1)
                may_end.touch()
            elif line.startswith("tool ends") and when == "while there is no broker":
                own.start_broker()

        assert _with_module(own.endpoint, TOOL + more, tmp_path, break_it) == ["tool runs", "tool ends", "[7]"]


@pytest.mark.parametrize("process", ["socket", "peer", "sender", "receiver"])
def test_a_tool_runs_once_when_a_process_of_the_socket_dies_meanwhile(daemon, tmp_path, process):
    more = f"""
    breaks = fn _ ->
      IO.puts("tool runs")
      Process.exit(:sys.get_state(MyApp.Axon).{process}, :kill)
      {{:ok, 7}}
    end

    [Tool.named("breaks", breaks)] |> Tool.ask(["breaks"]) |> MyApp.Answer.of() |> Tool.results()
    """
    assert _with_module(daemon.endpoint, TOOL + more, tmp_path) == ["tool runs", "[7]"]


def test_tools_run_at_the_same_time(daemon, tmp_path):
    more = """
    main = self()
    meet = fn _ -> send(main, {:here, self()}); receive(do: (:go -> {:ok, 1})) end
    id = Tool.ask([Tool.named("meet", meet)], ["meet", "meet", "meet"])
    here = for _ <- 1..3, do: receive(do: ({:here, pid} -> pid))
    Enum.each(here, &send(&1, :go))
    id |> MyApp.Answer.of() |> Tool.results()
    """
    assert _with_module(daemon.endpoint, TOOL + more, tmp_path) == ["[1,1,1]"]


GONE_WRONG = {
    "fails": ('{:error, "no paper"}', "no paper"),
    "names": ("{:error, :enoent}", "enoent"),
    "raises": ('raise "ouch"', "** (RuntimeError) ouch"),
    "divides": ('1 / length(Map.get(args, "none", []))', "** (ArithmeticError) bad argument in arithmetic expression"),
    "throws": ("throw(:ball)", "{:nocatch, :ball}"),
    "exits": ("exit(:tired)", ":tired"),
    "killed": ("Process.exit(self(), :kill)", "killed"),
    "linked": ("spawn_link(fn -> exit(:child) end); Process.sleep(:infinity)", ":child"),
    "bare": ("5", "a tool returns {:ok, result}"),
    "unpackable": ("{:ok, self()}", "Msgpax.Packer not implemented"),
    "not_text": ("{:ok, <<255>>}", "UTF-8"),
    "no_reason": ("{:error, nil}", "message"),
    "huge": ('{:ok, String.duplicate("x", 16 * 1024 * 1024)}', "the result has 167772"),
    "misfit": ('{:ok, "five"}', "/result: 'five' is not of type 'number'"),
    "extra": ("{:ok, 5, meta: 1}", "/meta"),
}
"""What a tool's function does, and a part of what the model hears."""


def test_what_goes_wrong_in_a_tool_is_told_to_the_model_and_harms_nothing(daemon, tmp_path):
    tools = [
        f'Tool.named("{name}", fn args -> _ = args; {code} end, %{{returns: %{{type: "number"}}}})'
        for name, (code, _) in GONE_WRONG.items()
    ]
    more = f"""
    owner = Process.whereis(MyApp.Axon)
    good = Tool.named("good", fn %{{"call" => call}} -> {{:ok, call, metadata: %{{kept: true}}}} end)
    tools = [good, {", ".join(tools)}]
    {{:ok, body}} = tools |> Tool.ask(Enum.map(tools, & &1.name)) |> MyApp.Answer.of()
    IO.puts(body["result"])
    parts = Enum.flat_map(body["messages"], & &1["parts"])
    IO.inspect(for %{{"outcome" => "success"}} = part <- parts, do: {{part["tool_name"], part["metadata"]}})
    IO.inspect(owner == Process.whereis(MyApp.Axon) and :sys.get_state(owner).tasks == %{{}})
    """
    heard, succeeded, unharmed = _with_module(daemon.endpoint, TOOL + more, tmp_path)
    assert succeeded == '[{"good", %{"kept" => true}}]'
    assert unharmed == "true"
    for (name, (_, part)), told in zip(GONE_WRONG.items(), json.loads(heard)[1:], strict=True):
        assert part in told, name


FOREVER = """
defmodule Forever do
  def tool(main, more \\\\ %{}) do
    Tool.named("forever", fn _ -> send(main, {:here, self()}); Process.sleep(:infinity) end, more)
  end

  def stopped(because) do
    pid = receive(do: ({:here, pid} -> pid))
    Process.monitor(pid)
    because.()
    down(pid)
  end

  defp down(pid), do: receive(do: ({:DOWN, _ref, :process, ^pid, reason} -> reason))
end
"""
"""A tool that never ends by itself, and how its task was stopped after something was done."""


def test_a_task_is_stopped_when_its_answer_is_not_wanted(daemon, tmp_path):
    more = """
    main = self()
    tools = [Forever.tool(main)]

    id = Tool.ask([Forever.tool(main, %{timeout_ms: 500})], ["forever"])
    IO.puts("timeout: #{Forever.stopped(fn -> :ok end)}")
    id |> MyApp.Answer.of() |> Tool.results()

    id = Tool.ask(tools, ["forever"])
    IO.puts("cancel: #{Forever.stopped(fn -> MyApp.Axon.cancel(id) end)}")
    {:error, error} = MyApp.Answer.of(id)
    IO.puts(error["error_type"])

    caller = spawn(fn -> Tool.ask(tools, ["forever"]); Process.sleep(:infinity) end)
    IO.puts("caller: #{Forever.stopped(fn -> Process.exit(caller, :kill) end)}")
    until_none = fn again -> if :sys.get_state(MyApp.Axon).open != %{}, do: again.(again) end
    until_none.(until_none)
    IO.puts("its run has ended")

    Tool.ask(tools, ["forever"])
    IO.puts("owner: #{Forever.stopped(fn -> Process.exit(Process.whereis(MyApp.Axon), :kill) end)}")
    """
    assert _with_module(daemon.endpoint, TOOL + FOREVER + more, tmp_path) == [
        "timeout: shutdown",
        """["Tool 'forever' did not answer within 500 ms."]""",
        "cancel: shutdown",
        "cancelled",
        "caller: shutdown",
        "its run has ended",
        "owner: shutdown",
    ]


def test_a_caller_whose_answer_is_refused_may_answer_again(daemon, tmp_path):
    more = """
    add = %{name: "add", returns: %{type: "number"}, parameters: %{type: "object"}}
    id = Tool.ask([add], ["add"])
    call_id = receive(do: ({:axon, ^id, "tool_call", call} -> call["call_id"]))
    :ok = MyApp.Axon.answer(id, "another", %{result: 5})
    receive(do: ({:axon, ^id, "refused", body} -> IO.puts(body["error_type"])))
    :ok = MyApp.Axon.answer(id, call_id, %{result: "five"})
    receive(do: ({:axon, ^id, "refused", body} -> IO.puts(body["message"])))
    :ok = MyApp.Axon.answer(id, call_id, %{result: 5})
    id |> MyApp.Answer.of() |> Tool.results()
    IO.inspect(MyApp.Axon.answer(id, call_id, %{result: 5}))
    """
    assert _with_module(daemon.endpoint, TOOL + more, tmp_path) == [
        "unknown_request",
        "/result: 'five' is not of type 'number'",
        "[5]",
        "{:error, :ended}",
    ]


class Scripted:
    """A daemon whose every message a test decides, for one client and its one run."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self.router = router
        self.client = self.run = b""

    def expect(self, kind: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and body of the client's next message, a `ping` aside."""
        while True:
            assert self.router.poll(WAIT_TIMEOUT_S * 1000), f"no {kind.decode()} came"
            self.client, came, id, *rest = self.router.recv_multipart()
            if came != b"ping":
                assert came == kind
                self.run = id
                header, body = (msgpack.unpackb(frame) if frame else {} for frame in (*rest, b"", b"")[:2])
                return header, body

    def send(self, kind: bytes, **body: Any) -> None:
        id = b"" if kind == b"alive" else self.run
        self.router.send_multipart([self.client, kind, id, msgpack.packb(body)])

    def call(self, seq: int, call_id: str) -> dict[str, Any]:
        """A `tool_call` as it would be sent."""
        return {"seq": seq, "call_id": call_id, "name": "note", "args": {"call": call_id}}


@contextmanager
def _scripted(script: Callable[[Scripted], None]) -> Iterator[str]:
    """The endpoint of a daemon that follows a script in a thread; fails if the script did."""
    failed: list[BaseException] = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def follow() -> None:
            try:
                script(daemon)
            except BaseException as error:
                failed.append(error)
                daemon.send(b"error", error_type="internal")

        daemon = Scripted(router)
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            thread.join()
            if failed:
                raise failed[0]


def test_a_lost_answer_is_given_again_and_no_call_is_run_twice(tmp_path):
    def script(daemon: Scripted) -> None:
        daemon.expect(b"run")
        daemon.send(b"alive", boot="one", open=1)
        daemon.send(b"tool_call", **daemon.call(1, "answered"))
        daemon.send(b"tool_call", **daemon.call(2, "lost"))
        answers = {header["call_id"]: body for header, body in (daemon.expect(b"tool_result") for _ in range(2))}
        assert answers == {"answered": {"result": "answered"}, "lost": {"result": "lost"}}

        daemon.send(b"alive", boot="two", open=1)
        assert daemon.expect(b"resume")[0] == {"from": 3}
        open_calls = [daemon.call(2, "lost"), daemon.call(4, "unheard")]
        daemon.send(b"resumed", **{"from": 3, "gap": False, "open_calls": open_calls, "last": 5})
        daemon.send(b"tool_call", **daemon.call(3, "over"))  # and not listed: it must not be run
        daemon.send(b"tool_call", **daemon.call(4, "unheard"))
        daemon.send(b"chunk", seq=5, type="text", data="over", step=1, part=0)
        assert daemon.expect(b"tool_result") == ({"call_id": "lost"}, {"result": "lost"})
        assert daemon.expect(b"tool_result") == ({"call_id": "unheard"}, {"result": "unheard"})

        daemon.send(b"alive", boot="three", open=1)
        assert daemon.expect(b"resume")[0] == {"from": 6}
        daemon.send(b"resumed", **{"from": 9, "gap": True, "open_calls": [daemon.call(7, "in a gap")], "last": 8})
        assert daemon.expect(b"tool_result") == ({"call_id": "in a gap"}, {"result": "in a gap"})
        daemon.send(b"tool_call", **daemon.call(9, "new"))
        assert daemon.expect(b"tool_result") == ({"call_id": "new"}, {"result": "new"})

        daemon.send(b"alive", boot="four", open=1)
        assert daemon.expect(b"resume")[0] == {"from": 10}
        daemon.send(b"resumed", **{"from": 10, "gap": False, "open_calls": [daemon.call(10, "no last")]})
        assert daemon.expect(b"tool_result") == ({"call_id": "no last"}, {"result": "no last"})
        daemon.send(b"tool_call", **daemon.call(10, "no last"))
        daemon.send(b"tool_call", **daemon.call(11, "newer"))
        assert daemon.expect(b"tool_result") == ({"call_id": "newer"}, {"result": "newer"})
        daemon.send(b"complete", seq=12, result="done")

    more = """
    note = fn %{"call" => call} -> IO.puts(call); {:ok, call} end
    [Tool.named("note", note)] |> Tool.ask(["note"]) |> MyApp.Answer.of() |> Tool.results()
    """
    with _scripted(script) as endpoint:
        lines = _with_module(endpoint, TOOL + more, tmp_path)
    assert sorted(lines[:2]) == ["answered", "lost"]
    assert lines[2:] == ["unheard", "in a gap", "new", "no last", "newer", "done"]


def test_a_refused_answer_is_answered_once_with_an_error(tmp_path):
    refused = {"of": "tool_result", "call_id": "1", "error_type": "invalid_request", "message": "not so"}

    def script(daemon: Scripted) -> None:
        daemon.expect(b"run")
        daemon.send(b"tool_call", **daemon.call(1, "1"))
        assert daemon.expect(b"tool_result")[1] == {"result": "1"}
        daemon.send(b"refused", **{**refused, "error_type": "unknown_request"})  # late: nothing to do
        daemon.send(b"refused", **refused)
        assert daemon.expect(b"tool_result")[1] == {"error": {"message": "not so", "retry": False}}
        daemon.send(b"refused", **refused)
        daemon.send(b"tool_call", **daemon.call(2, "2"))
        assert daemon.expect(b"tool_result")[0] == {"call_id": "2"}
        daemon.send(b"complete", seq=3, result="done")

    more = """
    note = fn %{"call" => call} -> {:ok, call} end
    [Tool.named("note", note)] |> Tool.ask(["note"]) |> MyApp.Answer.of() |> Tool.results()
    """
    with _scripted(script) as endpoint:
        assert _with_module(endpoint, TOOL + more, tmp_path) == ["done"]


@pytest.mark.parametrize("by", ["tool_cancelled", "error"])
def test_one_message_is_enough_to_stop_a_task(tmp_path, by):
    heard = {"watched": threading.Event(), "shutdown": threading.Event()}

    def script(daemon: Scripted) -> None:
        daemon.expect(b"run")
        daemon.send(b"tool_call", seq=1, call_id="1", name="forever", args={})
        assert heard["watched"].wait(WAIT_TIMEOUT_S)
        if by == "tool_cancelled":
            daemon.send(b"tool_cancelled", seq=2, call_id="1")
            assert heard["shutdown"].wait(WAIT_TIMEOUT_S)
        daemon.send(b"error", error_type="worker_lost")

    more = """
    id = Tool.ask([Forever.tool(self())], ["forever"])
    IO.puts(Forever.stopped(fn -> IO.puts("watched") end))
    {:error, error} = MyApp.Answer.of(id)
    IO.puts(error["error_type"])
    """

    def hear(line: str) -> None:
        if line.strip() in heard:
            heard[line.strip()].set()

    with _scripted(script) as endpoint:
        lines = _with_module(endpoint, TOOL + FOREVER + more, tmp_path, hear)
    assert lines == ["watched", "shutdown", "worker_lost"]


def test_a_run_whose_caller_died_is_cancelled_again_at_a_new_broker_and_runs_no_tool(tmp_path):
    def script(daemon: Scripted) -> None:
        daemon.expect(b"run")
        daemon.send(b"alive", boot="one", open=1)
        daemon.expect(b"cancel")  # which this broker takes to its grave
        daemon.send(b"tool_call", **daemon.call(1, "1"))
        daemon.send(b"alive", boot="two", open=1)
        daemon.expect(b"resume")
        daemon.expect(b"cancel")
        daemon.send(b"resumed", **{"from": 2, "gap": False, "open_calls": [daemon.call(1, "1")], "last": 1})
        daemon.send(b"error", seq=2, error_type="cancelled")

    more = """
    note = fn %{"call" => call} -> IO.puts(call); {:ok, call} end
    spawn(fn -> Tool.ask([Tool.named("note", note)], ["note"]) end)
    until = fn again, wanted -> if map_size(:sys.get_state(MyApp.Axon).open) != wanted, do: again.(again, wanted) end
    until.(until, 1)
    until.(until, 0)
    IO.puts("ended")
    """
    with _scripted(script) as endpoint:
        assert _with_module(endpoint, TOOL + more, tmp_path) == ["ended"]


def test_the_answers_that_are_kept_have_a_bound_and_are_not_shown(daemon, tmp_path):
    more = """
    alias MyApp.Axon.Tools
    {_body, tools} = Tools.split(%{tools: [Tool.named("note", & &1)]})
    calls = for seq <- 1..3, do: %{"seq" => seq, "call_id" => "call #{seq}", "name" => "note", "args" => %{}}
    big = String.duplicate("x", 6 * 1024 * 1024)

    tools = Enum.reduce(calls, tools, fn %{"call_id" => id} = call, tools ->
      {[{:run, ^id, _function, %{}}], tools} = Tools.heard(tools, "tool_call", call)
      Tools.answered(tools, id, big)
    end)

    IO.inspect(tools)
    {[_told | todo], _tools} = Tools.heard(tools, "resumed", %{"from" => 4, "open_calls" => calls, "last" => 3})
    word = &if &1 == big, do: "kept", else: Msgpax.unpack!(&1)["error"]["message"]
    for {:answer, id, packed} <- todo, do: IO.puts("#{id} #{word.(packed)}")
    """
    assert _with_module(daemon.endpoint, TOOL + more, tmp_path) == [
        "#MyApp.Axon.Tools<open: MapSet.new([]), ...>",
        "call 1 the answer was lost, and is no longer kept",
        "call 2 kept",
        "call 3 kept",
    ]


def test_an_answer_of_the_callers_that_was_refused_is_not_given_again(daemon, tmp_path):
    more = """
    alias MyApp.Axon.Tools
    {_body, tools} = Tools.split(%{})
    call = %{"seq" => 1, "call_id" => "1", "name" => "ask", "args" => %{}}
    {[{:tell, "tool_call", ^call}], tools} = Tools.heard(tools, "tool_call", call)
    tools = Tools.answered(tools, "1", "packed")
    resumed = %{"from" => 2, "open_calls" => [call], "last" => 1}
    given = fn tools -> {:answer, "1", "packed"} in elem(Tools.heard(tools, "resumed", resumed), 0) end
    IO.inspect(given.(tools))
    refused = %{"of" => "tool_result", "call_id" => "1", "error_type" => "invalid_request"}
    {[{:tell, "refused", ^refused}], tools} = Tools.heard(tools, "refused", refused)
    IO.inspect(given.(tools))
    """
    assert _with_module(daemon.endpoint, more, tmp_path) == ["true", "false"]


def _with_module(endpoint: str, more: str, folder: Path, hear: Callable[[str], None] = lambda _: None) -> list[str]:
    """The lines that code prints when it stands behind the page's module and its start."""
    blocks = [block for block in snippets.blocks(MODULE.page) if block.role == "runnable"]
    head = [
        block.code for block in blocks if "defmodule MyApp.A" in block.code or "Supervisor.start_link" in block.code
    ]
    head[-1] = head[-1].partition("\nid = ")[0]  # the module MyApp.Answer, without its use
    step = snippets.Step("\n".join(["Logger.configure(level: :none)", *head, more]))
    source = snippets.Script(MODULE.page, "more", "elixir", [step]).source(endpoint)
    return [line.strip() for line in snippets.run("elixir", source, folder, hear).output.splitlines()]


REPACK = """
for file <- Path.wildcard(Path.join(hd(System.argv()), "*.msgpack")) do
  packed = file |> File.read!() |> Msgpax.unpack!(binary: true) |> Msgpax.pack!(iodata: false)
  IO.puts("#{Path.basename(file, ".msgpack")} #{Base.encode64(packed)}")
end
"""


def test_msgpax_keeps_every_golden_message_as_it_is(tmp_path):
    source = REPACK.replace("hd(System.argv())", f'"{fixtures.FOLDER}"')
    lines = snippets.run("elixir", source, tmp_path).output.split("\n")
    came = {name: base64.b64decode(packed) for name, _, packed in (line.partition(" ") for line in lines if line)}
    for name, fixture in fixtures.load().items():
        assert msgpack.unpackb(came[name], timestamp=3) == fixture.value, name
