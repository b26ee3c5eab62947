defmodule AxonCore.Tool do
  @moduledoc """
  A tool that lives in this application: the model calls an Elixir function.

      AxonCore.Tool.new(
        name: "weather",
        description: "Degrees Celsius in a place.",
        parameters: [place: [type: :string, doc: "A town."]],
        returns: :number,
        function: fn %{"place" => place} -> {:ok, MyApp.Weather.celsius(place)} end
      )

  `parameters` and `returns` are a JSON Schema (a map with a `type` or the like), or whatever
  `AxonCore.SchemaUtils.to_json_schema/1` takes. What the model gives is checked against `parameters` before the function
  hears of it, and what the function gives against `returns`.

  The function takes the arguments, a map with string keys, and returns one of

  | | |
  |---|---|
  | `{:ok, result}` | for the model: what JSON can hold. Structs become maps, dates and times text; return a list for a `{:tuple, …}` |
  | `{:ok, result, content: …, metadata: …}` | more for the model, such as an image; `metadata` comes back in `messages` alone |
  | `{:error, message}` | the model is told that the tool failed; so it is where the function raises or exits |
  | `{:retry, message}` | the model is asked to try again, as often as the agent's `retries` say |

  It runs in a supervised task of its own, several at a time, and is stopped when its answer is no longer wanted. Without
  a `function` its calls come to who asked, as `{:tool_call, call}`, to be answered with `AxonCore.answer/3`.

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

  @doc "A tool. Raises `AxonCore.Error` (`:invalid_argument`) that names what is wrong."
  @spec new(keyword | map) :: t
  def new(options) do
    options = if is_map(options) and not is_struct(options), do: Map.to_list(options), else: options
    tool = struct!(__MODULE__, Options.validate!(options, :tool))
    %{tool | parameters: schema(tool.parameters), returns: schema(tool.returns)}
  end

  @doc "As the daemon is told of it: all but the function."
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
