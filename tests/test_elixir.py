"""The Elixir code of the documentation, run with real chumak and Msgpax against the real daemon.

Needs `elixir` and, in AXON_ELIXIR_DEPS, a folder with chumak/ebin and msgpax/ebin; skipped without.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from tests import fixtures, snippets
from tests.conftest import running

pytestmark = pytest.mark.skipif(snippets.no_elixir() is not None, reason=str(snippets.no_elixir()))

PAGES = [*sorted(snippets.DOCS.glob("*.md")), snippets.ROOT / "README.md"]
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
