defmodule AxonCore.OptionsTest do
  use ExUnit.Case, async: true
  alias AxonCore.{Agent, Error, Options, Tool}

  @tables ~w(connection request run run_stream agent_run_stream call_tool agent_call_tool agent_process supervisor
             daemon agent tool from_json_schema)a

  test "the error about an unknown option suggests the most similar one" do
    assert {:error, %Error{type: :invalid_argument, message: message}} = Options.validate([timout_ms: 5], :run)
    assert message == "unknown option :timout_ms of a run; did you mean :timeout_ms?"
    assert {:error, %Error{message: message}} = Options.validate([nothing_like_it: 5], :daemon)

    assert message ==
             "unknown option :nothing_like_it of AxonCore.Daemon; " <>
               "known options: :command, :env, :cd, :timeout, :name"
  end

  test "the error about an invalid value names the option and the expected type" do
    for {table, option, value, expected} <- [
          {:run, :timeout_ms, 0, "a positive integer, or nil"},
          {:run, :credit, "5", "a positive integer, or nil"},
          {:run, :id, "", "a binary of 1 to 64 bytes"},
          {:run, :log, :loud, ":off or :debug or :info or :warning or :error or :critical, or nil"},
          {:run, :tools, nil, "a list, each item an AxonCore.Tool, or the options of one"},
          {:run, :tools, [[name: "a"] | :b], "a list, each item an AxonCore.Tool, or the options of one"},
          {:run, :message_history, [1], "a list, each item a map or a keyword list, or nil"},
          {:run_stream, :to, "me", "a pid or the name of a process"},
          {:request, :cast, &String.upcase/2, "a function of one argument, or nil"},
          {:request, :observer, :me, "a pid, or nil"},
          {:request, :functions, %{"a" => &String.upcase/2}, "a map of names to functions of one argument"},
          {:connection, :endpoint, "ipc:///tmp/x", "tcp://HOST:PORT over IPv4"},
          {:connection, :frames, :many, ":single, or nil"},
          {:agent_process, :history, 1, "true or false"},
          {:agent_process, :agent, :echo, "an AxonCore.Agent, or the name of a registered agent"},
          {:daemon, :env, %{"A" => {}}, ~s(variables and their values as text, such as %{"AXON_RUN_WORKERS" => "2"})},
          {:agent, :instructions, ["a", 1], "text in UTF-8 or a list, each item text in UTF-8, or nil"},
          {:tool, :name, "two words", "text of 1 to 64 letters, digits, _ or -"},
          {:tool, :mode, :sometimes, ":live or :deferred"}
        ] do
      assert {:error, %Error{type: :invalid_argument, message: message}} = Options.validate([{option, value}], table)
      assert message =~ ~r/\Ainvalid option #{inspect(option)} of /
      assert message =~ "expected #{expected}, got: "
    end
  end

  test "the error about a missing required option names it" do
    assert {:error, %Error{message: "missing option :connection of AxonCore.AgentProcess: expected " <> _}} =
             Options.validate([agent: "echo"], :agent_process)

    assert_raise Error, ~r/missing option :name of AxonCore.Supervisor/, fn ->
      Supervisor.child_spec({AxonCore.Supervisor, []}, [])
    end
  end

  test "nested options are checked by their own table" do
    assert {:error, %Error{message: "unknown option :comand of AxonCore.Daemon; did you mean :command?"}} =
             Options.validate([name: A, daemon: [comand: "x"]], :supervisor)
  end

  test "options must be a keyword list" do
    for given <- [%{timeout_ms: 5}, [:timeout_ms], [{"timeout_ms", 5}], "x", nil, [{:a, 1} | :b]] do
      assert {:error, %Error{message: "invalid options of a run: expected a keyword list" <> _}} =
               Options.validate(given, :run)
    end
  end

  test "missing options get their defaults, and no other options are added" do
    assert Options.validate([], :run) == {:ok, []}
    {:ok, options} = Options.validate([identity: "me"], :connection)
    assert Enum.sort(Keyword.keys(options)) == [:endpoint, :identity, :transport]
    assert options[:endpoint] == "tcp://127.0.0.1:5570"
  end

  test "a name or an identity may be nil, as the value of an unset environment variable is" do
    assert {:ok, _} = Options.validate([name: nil, identity: nil], :connection)
  end

  test "a value that is sent as text may be an atom" do
    for {option, values} <- [log: [:info, "info"], model: [:echo, "echo"]], value <- values do
      assert {:ok, [{^option, ^value}]} = Options.validate([{option, value}], :run)
    end
  end

  test "every default fits its own type" do
    for {table, required} <- [
          connection: [],
          request: [],
          agent_process: [agent: "echo", connection: :axon],
          supervisor: [name: A],
          daemon: [],
          agent: [],
          tool: [name: "a"],
          from_json_schema: []
        ] do
      {:ok, options} = Options.validate(required, table)
      assert {:ok, ^options} = Options.validate(options, table)
    end
  end

  test "agents and tools have the options of their tables as fields, with the same defaults" do
    assert Map.from_struct(Tool.new(name: "a")) == Map.new(Keyword.put(Options.fields(:tool), :name, "a"))
    assert Map.from_struct(Agent.new([])) == Map.new(Options.fields(:agent))
  end

  test "the option types of modules list the options of the tables" do
    for {module, table} <- [{AxonCore.Connection, :connection}, {AxonCore.AgentProcess, :agent_process}] do
      {:ok, types} = Code.Typespec.fetch_types(module)
      [members] = for {:type, {:option, {:type, _, :union, members}, []}} <- types, do: members
      names = for {:type, _, :tuple, [{:atom, _, name}, _type]} <- members, do: name
      assert Enum.sort(names) == Enum.sort(Options.names(table))
    end
  end

  test "the documentation of a table contains every option" do
    for table <- @tables, name <- Options.names(table), do: assert(Options.docs(table) =~ "| `#{name}` | ")
  end

  test "the documentation of every public function with options contains its table" do
    for {module, place, table} <- [
          {AxonCore, {:run, 4}, :run},
          {AxonCore, {:call_tool, 4}, :call_tool},
          {AxonCore.Connection, :module, :connection},
          {AxonCore.Connection, {:request, 4}, :request},
          {AxonCore.AgentProcess, :module, :agent_process},
          {AxonCore.AgentProcess, :module, :agent_run_stream},
          {AxonCore.AgentProcess, {:call_tool, 4}, :agent_call_tool},
          {AxonCore.Supervisor, :module, :supervisor},
          {AxonCore.Daemon, :module, :daemon},
          {AxonCore.Agent, :module, :agent},
          {AxonCore.Tool, :module, :tool},
          {AxonCore.SchemaUtils, {:from_json_schema, 2}, :from_json_schema}
        ] do
      assert doc(module, place) =~ Options.docs(table), "#{inspect(module)} #{inspect(place)}"
    end
  end

  defp doc(module, place) do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, functions} = Code.fetch_docs(module)

    case place do
      :module ->
        moduledoc

      {name, arity} ->
        [doc] = for {{:function, ^name, ^arity}, _, _, %{"en" => doc}, _} <- functions, do: doc
        doc
    end
  end
end
