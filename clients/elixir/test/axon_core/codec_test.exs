defmodule AxonCore.CodecTest do
  use ExUnit.Case, async: true
  alias AxonCore.{Codec, Error}

  test "terms are converted to terms that msgpack can represent" do
    given = %{
      agent: :echo,
      when: ~D[2026-01-02],
      nested: [a: 1, b: nil],
      list: [1.5, true],
      at: ~U[2026-01-02 03:04:05Z]
    }

    assert Codec.plain(given) == %{
             "agent" => "echo",
             "when" => "2026-01-02",
             "nested" => %{"a" => 1, "b" => nil},
             "list" => [1.5, true],
             "at" => ~U[2026-01-02 03:04:05Z]
           }
  end

  test "an error has the JSON pointer of a value that msgpack cannot represent" do
    for {given, place, why} <- [
          {%{a: [1, self()]}, "/a/1", "msgpack cannot represent"},
          {%{a: %{b: <<255>>}}, "/a/b", "AxonCore.Codec.bytes/1"},
          {%{a: 2 ** 64}, "/a", "64 bits"},
          {%{1 => 2}, "", "expected text or an atom"},
          {%{a: {1, 2}}, "/a", "msgpack cannot represent"}
        ] do
      error = assert_raise Error, fn -> Codec.plain(given) end
      assert error.type == :invalid_argument
      assert error.details["pointer"] == place
      assert error.message =~ why
    end
  end

  test "wrapped bytes remain bytes" do
    assert Codec.plain(%{data: Codec.bytes(<<255>>)})["data"] == Codec.bytes(<<255>>)
  end

  @tag :packed
  test "messages have no empty frames at the end, and are parsed from their last frames" do
    assert Codec.message("cancel", "1") == ["cancel", "1"]
    assert ["credit", "1", header] = Codec.message("credit", "1", %{upto: 5})
    assert Codec.unpack(header) == {:ok, %{"upto" => 5}}
    assert ["run", "1", "", _body] = Codec.message("run", "1", %{}, %{agent: "echo"})
    assert {:ok, {"chunk", "1", %{"seq" => 1}}} = Codec.parse(["stale", "frames", "chunk", "1", Codec.pack(%{seq: 1})])
    assert {:ok, {"accepted", "1", %{}}} = Codec.parse(["accepted", "1", ""])
    assert Codec.parse(["chunk", "1", <<0xC1>>]) == :error
    assert Codec.parse(["chunk", "1"]) == :error
  end

  @tag :packed
  test "a message in a single frame is parsed" do
    single = Msgpax.pack!(["pong", Codec.bytes("id"), %{"protocol" => 1}], iodata: false)
    assert Codec.parse([single]) == {:ok, {"pong", "id", %{"protocol" => 1}}}
    assert Codec.parse([<<0xC1>>]) == :error
  end

  @tag :packed
  test "every fixture message is unchanged after unpacking and packing" do
    folder = Path.expand("../../../../tests/support/fixtures", __DIR__)
    files = Path.wildcard(Path.join(folder, "*.msgpack"))
    assert length(files) > 40

    for file <- files, not String.contains?(file, "single_message") do
      {:ok, value} = file |> File.read!() |> Codec.unpack()
      assert value |> Codec.pack() |> Codec.unpack() == {:ok, value}
    end
  end
end
