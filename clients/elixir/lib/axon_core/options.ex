defmodule AxonCore.Options do
  @moduledoc """
  Options of every public function, each with its type, default and documentation.

  Validation (`validate/2`) and documentation (`docs/1`) are generated from the same tables and therefore always agree.
  An error names the option, its value and the expected type. An unknown option is an error too, because a misspelled
  option would otherwise be ignored silently; the message suggests the most similar known name.

  Tables: `:connection`, `:request`, `:run`, `:run_stream`, `:agent_run_stream`, `:call_tool`, `:agent_call_tool`,
  `:agent_process`, `:supervisor`, `:daemon`, `:agent`, `:tool`, `:from_json_schema`.
  """

  alias AxonCore.Error

  @header [
    timeout_ms: [
      type: {:nullable, :pos_integer},
      doc: "time limit of the whole run in milliseconds; the daemon's default is 600,000"
    ],
    max_attempts: [
      type: {:nullable, :pos_integer},
      doc:
        "how many times the run may be started, from 1 to 10, if a worker dies before it sent a message of the run; " <>
          "default 1"
    ],
    ack: [
      type: {:nullable, :boolean},
      doc: "`true`: the daemon acknowledges the request with `{:accepted, duplicate?}`"
    ],
    credit: [
      type: {:nullable, :pos_integer},
      doc: "how many unacknowledged chunks and logs the daemon may send (flow control); unlimited by default"
    ],
    on_disconnect: [
      type: {:nullable, {:word, [:cancel, :keep]}},
      doc: "whether the run is cancelled or kept when this client is disconnected for 15 s; default `:cancel`"
    ],
    traceparent: [type: {:nullable, :text}, doc: "W3C trace context: the spans of the run become part of that trace"],
    tracestate: [type: {:nullable, :text}, doc: "W3C trace state"]
  ]

  @id [
    id: [
      type: :run_id,
      doc:
        "the id of the request, unique among all requests; random by default. A run with an explicit id is not " <>
          "cancelled when its connection is restarted"
    ]
  ]

  @to [to: [type: :process, doc: "the process that receives the messages of the run; by default the caller"]]

  @body [
    message_history: [
      type: {:nullable, {:list_of, :map}},
      doc: "messages of earlier runs, unchanged, from `AxonCore.Result`"
    ],
    tools: [type: {:list_of, :tool}, doc: "`AxonCore.Tool`s or their options; they replace the tools of the agent"],
    deferred_tool_results: [
      type: {:nullable, :map},
      doc: "answers to the deferred calls of an earlier run: `%{calls: …, approvals: …}`, both maps by `call_id`"
    ],
    output_schema: [type: {:nullable, :map}, doc: "JSON Schema that the result must fit"],
    output_mode: [
      type: {:nullable, {:word, [:tool, :native, :prompted]}},
      doc: "how pydantic-ai requests structured output from the model"
    ],
    deps: [type: :any, doc: "dependencies for the tools of a registered agent"],
    model: [type: {:nullable, :label}, doc: "the name of a model; it replaces the model of the agent"],
    model_settings: [type: {:nullable, :map}, doc: "pydantic-ai's model settings, such as `%{temperature: 0}`"],
    usage_limits: [type: {:nullable, :map}, doc: "pydantic-ai's usage limits, such as `%{request_limit: 3}`"],
    retries: [
      type: {:nullable, {:or, [:non_neg_integer, :map]}},
      doc: "how many times the model may try again: a number, or `%{tools: …, output: …}`"
    ],
    events: [
      type: {:nullable, {:word, [:text, :all]}},
      doc:
        "`:text`: chunks carry text, structured output and tool events. `:all`: they carry all events of pydantic-ai; " <>
          "default `:text`"
    ],
    log: [
      type: {:nullable, {:word, [:off, :debug, :info, :warning, :error, :critical]}},
      doc: "lowest level of the Python log records that are sent to the client; default `:off`"
    ],
    metadata: [type: {:nullable, :map}, doc: "a map that is passed to pydantic-ai"]
  ]

  @connection [
    name: [type: {:nullable, :name}, doc: "the registered name of the process, as for any GenServer"],
    endpoint: [
      type: :endpoint,
      default: "tcp://127.0.0.1:5570",
      doc: "address of the daemon's frontend (its setting `AXON_FRONTEND`), over IPv4"
    ],
    identity: [
      type: {:nullable, :identity},
      doc:
        "the ZeroMQ routing id of this client; two processes must not share one. By default it is random. A connection " <>
          "that is restarted in the same VM keeps its identity; connections without a `name` are identified by the " <>
          "order in which they start. " <>
          "Set it if the application resumes runs after a restart of the VM. Whoever knows it can take it over: use at " <>
          "least 16 random bytes, as text"
    ],
    transport: [
      type: :module,
      default: AxonCore.Transport.Chumak,
      doc: "`AxonCore.Transport.Chumak`, `AxonCore.Transport.Erlzmq` or another module with this behaviour"
    ],
    frames: [
      type: {:nullable, {:in, [:single]}},
      doc:
        "`:single`: the daemon sends each message as one frame, for a transport that does not keep the frames of a " <>
          "message together, such as chumak over CURVE"
    ]
  ]

  @daemon [
    command: [type: :text, default: "axon-zmq", doc: "the path of the command, or its name if it is on the PATH"],
    env: [
      type: :env,
      default: [],
      doc:
        "environment variables of the daemon, such as API keys and its " <>
          "[settings](https://github.com/axon-zmq/axon_zmq/blob/main/docs/operations.md#settings)"
    ],
    cd: [type: :text, doc: "the folder from which Python modules are imported; by default the current folder"],
    timeout: [type: :pos_integer, default: 60_000, doc: "time in milliseconds in which the daemon must become ready"],
    name: [type: {:nullable, :name}, doc: "the registered name of the process, as for any GenServer"]
  ]

  @tables %{
    connection: {"AxonCore.Connection", @connection},
    request:
      {"a request",
       @header ++
         @id ++
         @to ++
         [
           functions: [type: :functions, default: %{}, doc: "the functions of the tools in `body`, by name"],
           output: [type: :any, doc: "a spec of `AxonCore.SchemaUtils` to which the result is cast"],
           cast: [
             type: {:nullable, {:function, 1}},
             doc:
               "a function that casts the result instead of `output`: it returns `{:ok, value}` or `{:error, faults}`"
           ],
           observer: [
             type: {:nullable, :pid},
             doc: "a process that receives `{:axon_ended, ref, event}` before `to` receives the last message"
           ]
         ]},
    run: {"a run", @body ++ @header ++ @id},
    run_stream: {"a run", @body ++ @header ++ @id ++ @to},
    agent_run_stream:
      {"a run",
       @body ++
         @header ++
         @id ++
         @to ++
         [
           each: [
             type: {:nullable, {:function, 1}},
             doc:
               "a function that the calling process calls with each event except the last; `run_stream` then waits " <>
                 "for the end of the run"
           ]
         ]},
    call_tool:
      {"a tool call",
       [
         agent: [type: {:nullable, :label}, doc: "the name of the registered agent that has the tool"],
         deps: [type: :any, doc: "dependencies for the tool"]
       ] ++ @header ++ @id},
    agent_call_tool: {"a tool call", [deps: [type: :any, doc: "dependencies for the tool"]] ++ @header ++ @id},
    agent_process:
      {"AxonCore.AgentProcess",
       [
         agent: [type: :agent, required: true, doc: "an `AxonCore.Agent`, or the name of a registered agent"],
         connection: [type: :server, required: true, doc: "the `AxonCore.Connection`"],
         name: [type: {:nullable, :name}, doc: "the registered name of the process, as for any GenServer"],
         history: [
           type: :boolean,
           default: true,
           doc: "`true`: each run continues the conversation. `false`: runs are independent of each other"
         ],
         message_history: [
           type: {:list_of, :map},
           default: [],
           doc: "the messages with which the conversation starts"
         ]
       ]},
    supervisor:
      {"AxonCore.Supervisor",
       [
         name: [
           type: :atom,
           required: true,
           doc: "the name of the supervisor, from which the names of its children are derived"
         ],
         agents: [
           type: :agents,
           default: [],
           doc:
             "each agent under a name: an `AxonCore.Agent`, the name of a registered agent, or options of " <>
               "`AxonCore.AgentProcess` that include `agent`"
         ],
         daemon: [
           type: {:nullable, {:keyword, :daemon}},
           doc: "options of `AxonCore.Daemon`: starts the daemon too; `endpoint` then defaults to its address"
         ]
       ] ++ Keyword.delete(@connection, :name)},
    daemon: {"AxonCore.Daemon", @daemon},
    agent:
      {"AxonCore.Agent",
       [
         registered: [
           type: {:nullable, :label},
           doc: "the name of a registered agent, for which the daemon defines the next seven options"
         ],
         name: [type: {:nullable, :label}, doc: "pydantic-ai's name of the agent"],
         model: [type: {:nullable, :label}, doc: "the name of a model, such as `openai-chat:gpt-5-mini`"],
         instructions: [type: {:nullable, {:or, [:text, {:list_of, :text}]}}, doc: "pydantic-ai's instructions"],
         system_prompt: [type: {:nullable, {:or, [:text, {:list_of, :text}]}}, doc: "pydantic-ai's system prompt"],
         model_settings: [type: {:nullable, :map}, doc: "pydantic-ai's model settings, such as `%{temperature: 0}`"],
         retries: [
           type: {:nullable, {:or, [:non_neg_integer, :map]}},
           doc: "how many times the model may try again: a number, or `%{tools: …, output: …}`"
         ],
         toolsets: [
           type: {:list_of, :label},
           default: [],
           doc: "names of toolsets that the operator has registered"
         ],
         output_schema: [type: {:nullable, :map}, doc: "JSON Schema that the result must fit"],
         output_mode: [
           type: {:nullable, {:word, [:tool, :native, :prompted]}},
           doc: "how pydantic-ai requests structured output from the model"
         ],
         output: [
           type: :any,
           doc:
             "a spec of `AxonCore.SchemaUtils` for the result, instead of `output_schema`. Results are cast to it: " <>
               "with the module of a struct, a result is that struct"
         ],
         tools: [type: {:list_of, :tool}, default: [], doc: "`AxonCore.Tool`s of this application, or their options"],
         deps: [type: :any, doc: "dependencies for the tools of a registered agent"],
         usage_limits: [type: {:nullable, :map}, doc: "pydantic-ai's usage limits, such as `%{request_limit: 3}`"]
       ]},
    tool:
      {"AxonCore.Tool",
       [
         name: [type: :tool_name, required: true, doc: "the name of the tool, unique among the tools of an agent"],
         description: [type: {:nullable, :text}, doc: "the description that the model reads"],
         parameters: [type: :any, doc: "the arguments, as a spec of `AxonCore.SchemaUtils` or a JSON Schema"],
         returns: [type: :any, doc: "the result, as a spec of `AxonCore.SchemaUtils` or a JSON Schema"],
         function: [
           type: {:nullable, {:function, 1}},
           doc: "the function to call; without it, calls are sent to the caller as `{:tool_call, call}`"
         ],
         mode: [
           type: {:in, [:live, :deferred]},
           default: :live,
           doc: "`:live`: the run waits for the answer. `:deferred`: the run ends, and a later run continues with it"
         ],
         approval: [
           type: :boolean,
           default: false,
           doc: "`true`: the run ends, and a later run executes the call if it was approved"
         ],
         timeout_ms: [
           type: {:nullable, :pos_integer},
           doc: "time limit of one call in milliseconds; by default the time limit of the run"
         ],
         sequential: [type: :boolean, default: false, doc: "`true`: no other call is open at the same time"]
       ]},
    from_json_schema:
      {"AxonCore.SchemaUtils.from_json_schema",
       [
         keys: [
           type: {:in, [:strings, :atoms]},
           default: :strings,
           doc: "the type of field names; use `:atoms` only for trusted schemas, because atoms are never freed"
         ]
       ]}
  }

  @typedoc "The name of a table."
  @type table :: atom

  @doc """
  Checks options against a table.

  Returns the options, completed with defaults, or the error (`:invalid_argument`) about the first invalid option.
  """
  @spec validate(keyword, table) :: {:ok, keyword} | {:error, Error.t()}
  def validate(options, table) do
    {owner, specs} = Map.fetch!(@tables, table)

    with :ok <- check_keyword(options, owner),
         :ok <- check_known(options, specs, owner),
         :ok <- check_values(options, specs, owner),
         :ok <- check_required(options, specs, owner) do
      defaults = for {name, spec} <- specs, Keyword.has_key?(spec, :default), do: {name, spec[:default]}
      {:ok, Keyword.merge(defaults, options)}
    end
  end

  @doc "Checks options as `validate/2` does, but raises the error."
  @spec validate!(keyword, table) :: keyword
  def validate!(options, table) do
    case validate(options, table) do
      {:ok, options} -> options
      {:error, error} -> raise error
    end
  end

  @doc "Returns the names of a table's options, in the order of the documentation."
  @spec names(table) :: [atom]
  def names(table) do
    {_owner, specs} = Map.fetch!(@tables, table)
    Keyword.keys(specs)
  end

  @doc "Returns the options of a table as the fields of a struct, each with its default."
  @spec fields(table) :: keyword
  def fields(table) do
    {_owner, specs} = Map.fetch!(@tables, table)
    for {name, spec} <- specs, do: {name, spec[:default]}
  end

  @doc "Returns the names of the options that are keys of a request's header."
  @spec header() :: [atom]
  def header, do: Keyword.keys(@header)

  @doc "Returns the names of the options that are keys of a run request's body."
  @spec body() :: [atom]
  def body, do: Keyword.keys(@body)

  @doc "Returns the documentation of a table's options as a Markdown table."
  @spec docs(table) :: String.t()
  def docs(table) do
    {_owner, specs} = Map.fetch!(@tables, table)
    Enum.join(["| option | type | meaning |", "|---|---|---|" | Enum.map(specs, &row/1)], "\n")
  end

  defp row({name, spec}) do
    note =
      cond do
        spec[:required] -> " (required)"
        spec[:default] in [nil, [], %{}] -> ""
        true -> " (default `#{inspect(spec[:default])}`)"
      end

    "| `#{name}` | #{spec[:type] |> without_nil() |> expected()} | #{spec[:doc]}#{note} |"
  end

  # The documentation does not mention nil, which has the same effect as leaving an option out.
  defp without_nil({:nullable, type}), do: type
  defp without_nil(type), do: type

  # --- checks --------------------------------------------------------------------------------------

  defp check_keyword(options, owner) do
    if Keyword.keyword?(options),
      do: :ok,
      else: invalid("invalid options of #{owner}: expected a keyword list, got: #{shown(options)}")
  end

  defp check_known(options, specs, owner) do
    case Enum.find(Keyword.keys(options), &(not Keyword.has_key?(specs, &1))) do
      nil -> :ok
      unknown -> invalid("unknown option #{inspect(unknown)} of #{owner}#{hint(unknown, Keyword.keys(specs))}")
    end
  end

  defp check_values(options, specs, owner) do
    Enum.find_value(options, :ok, fn {name, value} ->
      with {:error, expected} <- check(specs[name][:type], value) do
        invalid("invalid option #{inspect(name)} of #{owner}: expected #{expected}, got: #{shown(value)}")
      else
        :ok -> nil
        {:nested, error} -> {:error, error}
      end
    end)
  end

  defp check_required(options, specs, owner) do
    Enum.find_value(specs, :ok, fn {name, spec} ->
      if spec[:required] && not Keyword.has_key?(options, name),
        do: invalid("missing option #{inspect(name)} of #{owner}: expected #{expected(spec[:type])}")
    end)
  end

  # Nested options are checked against their own table, whose error names the nested option.
  defp check({:nullable, _type}, nil), do: :ok
  defp check({:nullable, {:keyword, _table} = type}, value), do: check(type, value)

  defp check({:keyword, table}, value) do
    with {:error, error} <- validate(value, table), do: {:nested, error}, else: ({:ok, _options} -> :ok)
  end

  defp check(type, value), do: if(fits?(type, value), do: :ok, else: {:error, expected(type)})

  defp invalid(text), do: {:error, Error.new(:invalid_argument, text)}

  # Names with a higher similarity than this differ by one or two letters.
  @min_similarity 0.8

  defp hint(unknown, known) do
    nearest = Enum.max_by(known, &similarity(unknown, &1))

    if similarity(unknown, nearest) > @min_similarity,
      do: "; did you mean #{inspect(nearest)}?",
      else: "; known options: #{Enum.map_join(known, ", ", &inspect/1)}"
  end

  # Despite its name, `jaro_distance` is 1.0 for equal strings.
  defp similarity(one, other), do: String.jaro_distance(to_string(one), to_string(other))

  defp shown(value), do: inspect(value, limit: 5, printable_limit: 100)

  # --- types ---------------------------------------------------------------------------------------

  defp fits?(:any, _value), do: true
  defp fits?({:nullable, type}, value), do: value == nil or fits?(type, value)
  defp fits?({:or, types}, value), do: Enum.any?(types, &fits?(&1, value))
  defp fits?({:in, values}, value), do: value in values
  # Atoms are sent as text, so both forms are accepted.
  defp fits?({:word, words}, value), do: value in words or value in Enum.map(words, &Atom.to_string/1)
  defp fits?({:list_of, type}, value), do: all?(value, type)
  defp fits?({:function, arity}, value), do: is_function(value, arity)
  defp fits?(:boolean, value), do: is_boolean(value)
  defp fits?(:atom, value), do: is_atom(value) and value not in [nil, true, false]
  defp fits?(:module, value), do: fits?(:atom, value)
  defp fits?(:pos_integer, value), do: is_integer(value) and value > 0
  defp fits?(:non_neg_integer, value), do: is_integer(value) and value >= 0
  defp fits?(:text, value), do: is_binary(value) and String.valid?(value)
  # Atoms are sent as text, so both forms are accepted.
  defp fits?(:label, value), do: fits?(:text, value) or fits?(:atom, value)
  defp fits?(:functions, value), do: is_map(value) and value |> Map.values() |> all?({:function, 1})
  defp fits?(:map, value), do: is_map(value) or Keyword.keyword?(value)
  defp fits?(:pid, value), do: is_pid(value)
  defp fits?(:run_id, value), do: is_binary(value) and byte_size(value) in 1..64
  defp fits?(:tool_name, value), do: is_binary(value) and value =~ ~r/\A[a-zA-Z0-9_-]{1,64}\z/
  defp fits?(:identity, value), do: is_binary(value) and value =~ ~r/\A[\x21-\x7e]{1,200}\z/
  defp fits?(:endpoint, value), do: match?({:ok, _address}, address(value))
  # Not matched as a struct pattern, because AxonCore.Agent is compiled after this module.
  defp fits?(:agent, value), do: is_struct(value, AxonCore.Agent) or fits?(:text, value)
  defp fits?(:tool, value), do: is_map(value) or Keyword.keyword?(value)
  defp fits?(:agents, value), do: Keyword.keyword?(value)

  defp fits?(:env, value) when is_map(value), do: value |> Map.to_list() |> all?(:variable)
  defp fits?(:env, value), do: all?(value, :variable)
  defp fits?(:variable, {name, value}), do: scalar?(name) and scalar?(value)
  defp fits?(:variable, _other), do: false

  defp fits?(:name, {:global, _name}), do: true
  defp fits?(:name, {:via, module, _name}), do: is_atom(module)
  defp fits?(:name, value), do: fits?(:atom, value)

  defp fits?(:process, {name, node}) when name != :global, do: is_atom(name) and is_atom(node)
  defp fits?(:process, value), do: is_pid(value) or fits?(:name, value)
  defp fits?(:server, value), do: fits?(:process, value)

  defp scalar?(value), do: is_binary(value) or is_atom(value) or is_number(value)

  # Recursive, because `Enum.all?/2` raises for an improper list.
  defp all?([], _type), do: true
  defp all?([value | rest], type), do: fits?(type, value) and all?(rest, type)
  defp all?(_other, _type), do: false

  @doc "Returns host and port of an endpoint, or `:error` if it does not have the form `tcp://HOST:PORT` over IPv4."
  @spec address(term) :: {:ok, {String.t(), :inet.port_number()}} | :error
  def address(endpoint) do
    with true <- is_binary(endpoint),
         {:ok, %URI{scheme: "tcp", host: host, port: port}} when is_binary(host) and port in 1..65_535 <-
           URI.new(endpoint),
         false <- host == "" or String.contains?(host, ":") do
      {:ok, {host, port}}
    else
      _other -> :error
    end
  end

  defp expected(:any), do: "any term"
  defp expected({:nullable, type}), do: "#{expected(type)}, or nil"
  defp expected({:or, types}), do: Enum.map_join(types, " or ", &expected/1)
  defp expected({:in, values}), do: Enum.map_join(values, " or ", &inspect/1)
  defp expected({:word, words}), do: expected({:in, words})
  defp expected({:list_of, type}), do: "a list, each item #{expected(type)}"
  defp expected({:function, 1}), do: "a function of one argument"
  defp expected({:keyword, _table}), do: "a keyword list"
  defp expected(:boolean), do: "true or false"
  defp expected(:atom), do: "an atom"
  defp expected(:module), do: "a module"
  defp expected(:pos_integer), do: "a positive integer"
  defp expected(:non_neg_integer), do: "an integer from 0"
  defp expected(:label), do: "text in UTF-8"
  defp expected(:functions), do: "a map of names to functions of one argument"
  defp expected(:text), do: "text in UTF-8"
  defp expected(:map), do: "a map or a keyword list"
  defp expected(:pid), do: "a pid"
  defp expected(:run_id), do: "a binary of 1 to 64 bytes"
  defp expected(:tool_name), do: "text of 1 to 64 letters, digits, _ or -"
  defp expected(:identity), do: "ASCII text of 1 to 200 characters without spaces"
  defp expected(:endpoint), do: "tcp://HOST:PORT over IPv4"
  defp expected(:agent), do: "an AxonCore.Agent, or the name of a registered agent"
  defp expected(:tool), do: "an AxonCore.Tool, or the options of one"
  defp expected(:agents), do: "a keyword list that names each agent, such as [support: \"support\"]"
  defp expected(:env), do: "variables and their values as text, such as %{\"AXON_RUN_WORKERS\" => \"2\"}"
  defp expected(:name), do: "the name of a process: an atom, {:global, term} or {:via, module, term}"
  defp expected(:process), do: "a pid or the name of a process"
  defp expected(:server), do: "a pid or the name of a process"
end
