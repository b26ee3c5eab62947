defmodule AxonCore.AgentTest do
  use ExUnit.Case, async: true
  alias AxonCore.{Agent, Error, Tool, ToolUtils}

  test "a request contains the name of a registered agent, or the agent as data" do
    assert {%{agent: "weather", prompt: "x"}, functions} = Agent.request(Agent.new("weather"), "x", %{})
    assert functions == %{}

    data =
      Agent.new(model: "echo", instructions: "Be short.", output: [city: :string], usage_limits: %{request_limit: 1})

    {body, _} = Agent.request(data, "x", %{model_settings: %{temperature: 0}})
    assert body.agent == %{model: "echo", instructions: "Be short."}
    assert body.output_schema["required"] == ["city"]
    assert body.usage_limits == %{request_limit: 1}
    assert body.model_settings == %{temperature: 0}
    refute is_map_key(body, :tools)
  end

  test "the functions of tools are not part of the request" do
    tool = [name: "add", parameters: [a: :integer], function: &{:ok, &1["a"]}, timeout_ms: 5]
    {body, functions} = Agent.request(Agent.new(model: "tools", tools: [tool]), "x", %{})
    assert [%{name: "add", timeout_ms: 5, mode: :live} = wire] = body.tools
    refute is_map_key(wire, :function)
    assert functions["add"].(%{"a" => 3}) == {:ok, 3}
  end

  test "an error names the invalid option" do
    for {make, part} <- [
          {fn -> Agent.new(modle: "echo") end, ":modle"},
          {fn -> Agent.new("weather", model: "echo") end, "invalid option :model"},
          {fn -> Agent.new(output: [a: :string], output_schema: %{}) end, "exclude each other"},
          {fn -> Tool.new(name: "two words") end, "name"},
          {fn -> Tool.new(name: "a", function: fn -> 1 end) end, "one argument"},
          {fn -> Tool.new(name: "a", mode: :sometimes) end, "mode"},
          {fn -> Tool.new(name: "a", run: 1) end, ":run"},
          {fn -> ToolUtils.split([[name: "a"], [name: "a"]]) end, "two tools"}
        ] do
      assert_raise Error, ~r/#{part}/, make
    end
  end

  test "the return value of a tool becomes an answer" do
    assert ToolUtils.answer({:ok, 1}) == %{result: 1}
    assert ToolUtils.answer({:ok, 1, metadata: %{a: 1}}) == %{result: 1, metadata: %{a: 1}}
    assert ToolUtils.answer({:retry, "again"}) == %{error: %{message: "again", retry: true}}
    assert ToolUtils.answer({:error, :enoent}) == %{error: %{message: "enoent", retry: false}}
    assert ToolUtils.answer({:error, %RuntimeError{message: "no"}}) == %{error: %{message: "no", retry: false}}
    assert_raise ArgumentError, ~r/invalid return value of a tool/, fn -> ToolUtils.answer(5) end
  end
end
