defmodule AxonCore.Agent do
  @moduledoc """
  Definition of an agent: the name of a registered agent, or a complete definition that is sent with each request.

      AxonCore.Agent.new("weather")

      AxonCore.Agent.new(
        model: "openai-chat:gpt-5-mini",
        instructions: "Be short.",
        output: [city: :string, celsius: :number],
        tools: [weather_tool]
      )

  #{AxonCore.Options.docs(:agent)}
  """

  alias AxonCore.{Error, Options, SchemaUtils, ToolUtils}

  defstruct Options.fields(:agent)

  @type t :: %__MODULE__{
          registered: String.t() | nil,
          name: String.t() | nil,
          model: String.t() | nil,
          instructions: String.t() | [String.t()] | nil,
          system_prompt: String.t() | [String.t()] | nil,
          output_schema: map | nil,
          output_mode: :tool | :native | :prompted | nil,
          model_settings: map | nil,
          retries: non_neg_integer | map | nil,
          output: term,
          deps: term,
          usage_limits: map | nil,
          toolsets: [String.t()],
          tools: [AxonCore.Tool.t()]
        }

  # Keys of the `agent` map in a request. The daemon defines them for a registered agent.
  @agent_keys ~w(name model instructions system_prompt model_settings retries toolsets)a
  # Keys of the request itself, beside `agent`.
  @request_keys ~w(output_mode deps usage_limits)a

  @doc """
  Returns an agent.

  Raises `AxonCore.Error` (`:invalid_argument`) if an option is unknown or invalid, or excludes another given option.
  """
  @spec new(String.t() | keyword | map, keyword) :: t
  def new(registered_or_options, options \\ [])

  def new(registered, options) when is_binary(registered) and is_list(options),
    do: new([{:registered, registered} | options], [])

  def new(options, []) do
    options = if is_map(options) and not is_struct(options), do: Map.to_list(options), else: options
    agent = struct!(__MODULE__, Options.validate!(options, :agent))
    validate(%{agent | tools: ToolUtils.tools(agent.tools)})
  end

  @doc """
  Returns the agent that a term denotes: an `AxonCore.Agent` itself, or the registered agent of that name.

  Raises `AxonCore.Error` (`:invalid_argument`) for any other term.
  """
  @spec of(t | String.t()) :: t
  def of(%__MODULE__{} = agent), do: agent
  def of(registered) when is_binary(registered), do: new(registered)

  def of(other) do
    text =
      "invalid agent: expected an AxonCore.Agent, or the name of a registered agent, got: #{inspect(other, limit: 5)}"

    raise Error.new(:invalid_argument, text)
  end

  defp validate(%__MODULE__{output: output, output_schema: schema}) when output != nil and schema != nil do
    raise Error.new(:invalid_argument, "invalid agent: output and output_schema exclude each other; give one of them")
  end

  # A map is a JSON Schema already, so results are not cast.
  defp validate(%__MODULE__{output: %{} = schema} = agent) when not is_struct(schema),
    do: validate(%{agent | output: nil, output_schema: schema})

  defp validate(%__MODULE__{registered: name} = agent) when name != nil do
    case Enum.find(@agent_keys, &(Map.get(agent, &1) not in [nil, []])) do
      nil ->
        agent

      key ->
        text = "invalid option #{inspect(key)}: the daemon defines it for the registered agent #{inspect(name)}"
        raise Error.new(:invalid_argument, text)
    end
  end

  defp validate(agent), do: agent

  @doc """
  Returns the body of a run request, and the functions of its tools by name.

  `more` holds further keys of the request, such as `message_history`. They take precedence over the agent's own keys.
  """
  @spec request(t, term, map) :: {map, %{String.t() => ToolUtils.tool_function()}}
  def request(%__MODULE__{} = agent, prompt, more) do
    {tools, functions} = ToolUtils.split(Map.get(more, :tools, agent.tools))

    body =
      agent
      |> Map.take(@request_keys)
      |> Map.merge(%{agent: to_wire(agent), prompt: prompt, output_schema: schema(agent), tools: tools})
      |> Map.merge(Map.delete(more, :tools))
      |> Map.reject(fn {_key, value} -> value in [nil, []] end)

    {body, functions}
  end

  @doc "Returns the value of `agent` in a request: the name of a registered agent, or a map."
  @spec to_wire(t) :: String.t() | map
  def to_wire(%__MODULE__{registered: name}) when name != nil, do: name
  def to_wire(agent), do: agent |> Map.take(@agent_keys) |> Map.reject(fn {_key, value} -> value in [nil, []] end)

  defp schema(%__MODULE__{output: nil, output_schema: schema}), do: schema
  defp schema(%__MODULE__{output: output}), do: SchemaUtils.to_json_schema(output)
end
