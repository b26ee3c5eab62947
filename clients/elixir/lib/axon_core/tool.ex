defmodule AxonCore.Tool do
  @moduledoc """
  Definition of a tool: an Elixir function that the model may call.

      AxonCore.Tool.new(
        name: "weather",
        description: "Degrees Celsius in a place.",
        parameters: [place: [type: :string, doc: "A town."]],
        returns: :number,
        function: fn %{"place" => place} -> {:ok, MyApp.Weather.celsius(place)} end
      )

  `parameters` and `returns` are JSON Schemas (maps) or specs of `AxonCore.SchemaUtils`. The daemon checks the model's
  arguments against `parameters` before the function is called, and the function's result against `returns`.

  The function receives the arguments as a map with string keys, and returns one of these:

  | value | effect |
  |---|---|
  | `{:ok, result}` | The model receives the result. It must be representable in JSON: structs become maps, dates and times become text, and a `{:tuple, …}` must be returned as a list. |
  | `{:ok, result, content: …, metadata: …}` | The model also receives `content`, such as an image. `metadata` is for the application: it is only in the `messages` of the `AxonCore.Result`. |
  | `{:error, message}` | The model receives the message as a failure of the tool. A function that raises or exits has the same effect. |
  | `{:retry, message}` | The model receives the message and may try again, as many times as the agent's `retries` allow. |

  Each call runs in a separate supervised task, so several calls may run at the same time. A task is stopped when the
  daemon no longer waits for its answer. Without a `function`, calls are sent to the caller of the run as
  `{:tool_call, call}`; answer them with `AxonCore.answer/3`.

  #{AxonCore.Options.docs(:tool)}
  """

  alias AxonCore.{Options, SchemaUtils}

  @enforce_keys [:name]
  defstruct Options.fields(:tool)

  @type answer :: {:ok, term} | {:ok, term, keyword | map} | {:error, term} | {:retry, term}
  @type t :: %__MODULE__{
          name: String.t(),
          description: String.t() | nil,
          parameters: map | nil,
          returns: map | nil,
          function: (map -> answer) | nil,
          timeout_ms: pos_integer | nil,
          mode: :live | :deferred,
          approval: boolean,
          sequential: boolean
        }

  @doc "Returns a tool. Raises `AxonCore.Error` (`:invalid_argument`) that names the invalid option."
  @spec new(keyword | map) :: t
  def new(options) do
    options = if is_map(options) and not is_struct(options), do: Map.to_list(options), else: options
    tool = struct!(__MODULE__, Options.validate!(options, :tool))
    %{tool | parameters: schema(tool.parameters), returns: schema(tool.returns)}
  end

  @doc "Returns the tool's entry in a request: all options except the function."
  @spec to_wire(t) :: map
  def to_wire(%__MODULE__{} = tool) do
    tool
    |> Map.from_struct()
    |> Map.delete(:function)
    |> Map.reject(fn {_key, value} -> value in [nil, false] end)
  end

  defp schema(nil), do: nil
  defp schema(spec), do: SchemaUtils.to_json_schema(spec)
end
