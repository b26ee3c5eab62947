defmodule AxonCore.SchemaUtils do
  @moduledoc """
  Between Elixir and JSON Schema (draft 2020-12): for a tool's arguments and results, and for an agent's output.

      iex> AxonCore.SchemaUtils.to_json_schema(city: :string, days: [type: :integer, min: 1, required: false])
      %{
        "type" => "object",
        "properties" => %{"city" => %{"type" => "string"}, "days" => %{"type" => "integer", "minimum" => 1}},
        "required" => ["city"],
        "additionalProperties" => false
      }

  ## Specs

  | spec | JSON Schema |
  |---|---|
  | a map | itself: it is one |
  | `:string` `:integer` `:number` `:float` `:boolean` `:map` `:any` `nil` | the type |
  | `:date` `:time` `:datetime` (and Ecto's names of them) | text in that format |
  | `{:list, spec}`, `[spec]`, `{:array, spec}` | array |
  | `{:map, spec}` | object with such values |
  | `{:tuple, [spec, …]}` | array of exactly these |
  | `{:enum, [value, …]}`, `{:const, value}` | these values; atoms are text |
  | `{:nullable, spec}` | the same, or null |
  | `{:one_of, [spec, …]}` | any of these |
  | `[field: spec, …]` | object with these fields |
  | `[type: spec, …options]`, `{spec, options}` | the spec with `doc`, `min`, `max`, `pattern`, `format`, `default`, `required` |
  | a struct's module | object, from its `@type t`, its Ecto schema, or its fields alone |
  | `{Module, :type}` | a typespec: `@type type` of that module |

  Fields are required, but for those with `required: false`, a `default`, or of a struct neither enforced nor without a
  default. `min` and `max` are of a number's value, a text's length, an array's size.
  """

  alias AxonCore.{Codec, Error}
  alias AxonCore.SchemaUtils.{Structs, Validator}

  @type spec :: atom | module | tuple | keyword | list | map
  @type fault :: %{pointer: String.t(), message: String.t()}

  @scalars %{
    string: %{"type" => "string"},
    integer: %{"type" => "integer"},
    number: %{"type" => "number"},
    float: %{"type" => "number"},
    boolean: %{"type" => "boolean"},
    map: %{"type" => "object"},
    object: %{"type" => "object"},
    any: %{},
    null: %{"type" => "null"},
    nil: %{"type" => "null"},
    id: %{"type" => "integer"},
    binary_id: %{"type" => "string", "format" => "uuid"},
    binary: %{"type" => "string"},
    decimal: %{"type" => "number"},
    date: %{"type" => "string", "format" => "date"},
    time: %{"type" => "string", "format" => "time"},
    time_usec: %{"type" => "string", "format" => "time"},
    datetime: %{"type" => "string", "format" => "date-time"},
    utc_datetime: %{"type" => "string", "format" => "date-time"},
    utc_datetime_usec: %{"type" => "string", "format" => "date-time"},
    naive_datetime: %{"type" => "string", "format" => "date-time"},
    naive_datetime_usec: %{"type" => "string", "format" => "date-time"}
  }
  @bounds %{
    "string" => {"minLength", "maxLength"},
    "array" => {"minItems", "maxItems"},
    "integer" => {"minimum", "maximum"},
    "number" => {"minimum", "maximum"}
  }
  @options ~w(type doc min max pattern format default required)a

  # --- to JSON Schema ------------------------------------------------------------------------------

  @doc "A spec as JSON Schema, with text as keys. Raises `AxonCore.Error` (`:invalid_argument`) for what is none."
  @spec to_json_schema(spec) :: map
  def to_json_schema(spec) when is_map(spec) and not is_struct(spec), do: Codec.plain(spec)
  def to_json_schema(spec) when is_map_key(@scalars, spec), do: @scalars[spec]
  def to_json_schema(module) when is_atom(module), do: module |> struct_fields() |> object()

  def to_json_schema({list, spec}) when list in [:list, :array],
    do: %{"type" => "array", "items" => to_json_schema(spec)}

  def to_json_schema({:map, spec}), do: %{"type" => "object", "additionalProperties" => to_json_schema(spec)}
  def to_json_schema({:enum, values}), do: %{"enum" => Codec.plain(values)}
  def to_json_schema({:const, value}), do: %{"const" => Codec.plain(value)}
  def to_json_schema({:one_of, specs}), do: %{"anyOf" => Enum.map(specs, &to_json_schema/1)}
  def to_json_schema({:nullable, spec}), do: spec |> to_json_schema() |> nullable()

  def to_json_schema({:tuple, specs}) do
    items = Enum.map(specs, &to_json_schema/1)
    size = length(items)
    %{"type" => "array", "prefixItems" => items, "minItems" => size, "maxItems" => size}
  end

  def to_json_schema({module, type}) when is_atom(module) and is_atom(type),
    do: module |> named(type) |> to_json_schema()

  def to_json_schema({spec, options}) when is_list(options), do: with_options(to_json_schema(spec), options)
  def to_json_schema([]), do: object([])
  def to_json_schema([{:type, spec} | options]), do: to_json_schema({spec, options})
  def to_json_schema([{key, _spec} | _] = fields) when is_atom(key), do: object(fields)
  def to_json_schema([spec]), do: to_json_schema({:list, spec})
  def to_json_schema(other), do: raise(Error.new(:invalid_argument, "#{inspect(other)} is no spec of a schema"))

  defp object(fields) do
    required = for {name, spec} <- fields, required?(spec), do: to_string(name)
    properties = Map.new(fields, fn {name, spec} -> {to_string(name), to_json_schema(spec)} end)
    schema = %{"type" => "object", "properties" => properties, "additionalProperties" => false}
    if required == [], do: schema, else: Map.put(schema, "required", required)
  end

  defp required?(spec) do
    options = options_of(spec)
    Keyword.get(options, :required, not Keyword.has_key?(options, :default))
  end

  defp options_of({_spec, options}) when is_list(options), do: if(Keyword.keyword?(options), do: options, else: [])
  defp options_of([{:type, _spec} | options]), do: options
  defp options_of(_spec), do: []

  defp with_options(schema, options) do
    Enum.reduce(options, schema, fn
      {:doc, doc}, schema ->
        Map.put(schema, "description", doc)

      {:default, default}, schema ->
        Map.put(schema, "default", Codec.plain(default))

      {:pattern, %Regex{source: source}}, schema ->
        Map.put(schema, "pattern", source)

      {key, value}, schema when key in [:pattern, :format] ->
        Map.put(schema, to_string(key), to_string(value))

      {bound, value}, schema when bound in [:min, :max] ->
        Map.put(schema, bound(schema, bound), value)

      {:required, _required}, schema ->
        schema

      {other, _value}, _schema ->
        raise Error.new(:invalid_argument, "a spec has no #{inspect(other)}: #{inspect(@options)}")
    end)
  end

  defp bound(%{"type" => type}, which) when is_map_key(@bounds, type) do
    {min, max} = @bounds[type]
    if which == :min, do: min, else: max
  end

  defp bound(schema, which), do: raise(Error.new(:invalid_argument, "#{inspect(schema)} has no #{which}"))

  defp nullable(%{"type" => type} = schema) when is_binary(type), do: %{schema | "type" => [type, "null"]}
  defp nullable(%{"enum" => values} = schema), do: %{schema | "enum" => values ++ [nil]}
  defp nullable(schema), do: %{"anyOf" => [schema, %{"type" => "null"}]}

  defp named(module, type) do
    case Structs.type(module, type) do
      {:ok, spec} -> spec
      :error -> raise Error.new(:invalid_argument, "#{inspect(module)} has no type #{type}, or was compiled without it")
    end
  end

  defp struct_fields(module) do
    case Structs.fields(module) do
      {:ok, fields} -> fields
      :error -> raise Error.new(:invalid_argument, "#{inspect(module)} is neither a type nor a struct's module")
    end
  end

  # --- and back ------------------------------------------------------------------------------------

  @doc "A JSON Schema as a spec; what has no spec stays the schema that it is."
  @spec from_json_schema(map) :: spec
  def from_json_schema(schema) do
    schema = Codec.plain(schema)
    {spec, rest} = bare(schema)
    options = for {key, option} <- option_names(schema), is_map_key(rest, key), do: {option, rest[key]}

    cond do
      Map.drop(rest, Map.keys(option_names(schema))) != %{} -> schema
      options == [] -> spec
      true -> [{:type, spec} | options]
    end
  end

  defp bare(%{"type" => "object", "properties" => properties} = schema) do
    required = schema["required"] || []

    fields =
      for {name, field} <- properties, do: {String.to_atom(name), optional(from_json_schema(field), name in required)}

    {Enum.sort(fields), Map.drop(schema, ~w(type properties required additionalProperties))}
  end

  defp bare(%{"type" => "object", "additionalProperties" => values} = schema) when is_map(values) do
    {{:map, from_json_schema(values)}, Map.drop(schema, ~w(type additionalProperties))}
  end

  defp bare(%{"type" => "array", "prefixItems" => items} = schema) do
    {{:tuple, Enum.map(items, &from_json_schema/1)}, Map.drop(schema, ~w(type prefixItems minItems maxItems items))}
  end

  defp bare(%{"type" => "array"} = schema) do
    {{:list, from_json_schema(schema["items"] || %{})}, Map.drop(schema, ~w(type items))}
  end

  defp bare(%{"type" => [type, "null"]} = schema) do
    {spec, rest} = bare(%{schema | "type" => type})
    {{:nullable, spec}, rest}
  end

  defp bare(%{"enum" => values} = schema), do: {{:enum, values}, Map.drop(schema, ~w(enum type))}
  defp bare(%{"const" => value} = schema), do: {{:const, value}, Map.drop(schema, ~w(const type))}

  defp bare(%{"anyOf" => schemas} = schema),
    do: {{:one_of, Enum.map(schemas, &from_json_schema/1)}, Map.delete(schema, "anyOf")}

  defp bare(%{"type" => "string", "format" => "date"} = schema), do: {:date, Map.drop(schema, ~w(type format))}
  defp bare(%{"type" => "string", "format" => "time"} = schema), do: {:time, Map.drop(schema, ~w(type format))}
  defp bare(%{"type" => "string", "format" => "date-time"} = schema), do: {:datetime, Map.drop(schema, ~w(type format))}
  defp bare(%{"type" => "object"} = schema), do: {:map, Map.drop(schema, ~w(type additionalProperties))}

  defp bare(%{"type" => type} = schema) when type in ~w(string integer number boolean null) do
    {String.to_existing_atom(type), Map.delete(schema, "type")}
  end

  defp bare(schema) when schema == %{}, do: {:any, %{}}
  defp bare(schema), do: {:any, schema}

  defp optional(spec, true), do: spec
  defp optional([{:type, _spec} | _] = spec, false), do: spec ++ [required: false]
  defp optional(spec, false), do: [type: spec, required: false]

  defp option_names(schema) do
    {min, max} = Map.get(@bounds, schema["type"], {nil, nil})
    names = %{"description" => :doc, "pattern" => :pattern, "format" => :format, "default" => :default}
    if min, do: Map.merge(names, %{min => :min, max => :max}), else: names
  end

  # --- values --------------------------------------------------------------------------------------

  @doc """
  Whether data, as it comes from the daemon, fits a schema or a spec.

  This is for what an application wants to know beforehand: the daemon judges everything by itself. It knows the keywords
  that specs make, `allOf`, `oneOf`, `not` and `$ref` into the same schema; of other keywords it says nothing.
  """
  @spec validate(term, spec) :: :ok | {:error, [fault]}
  def validate(data, spec) do
    case Validator.faults(data, to_json_schema(spec)) do
      [] -> :ok
      faults -> {:error, faults}
    end
  end

  @doc """
  Data as the spec means it: structs for a struct's module, maps with atoms as keys for fields, `Date`, `Time` and
  `DateTime` for those, atoms where `:enum` has atoms.
  """
  @spec cast(term, spec) :: {:ok, term} | {:error, [fault]}
  def cast(data, spec) do
    with :ok <- validate(data, spec) do
      {:ok, cast_to(data, spec)}
    end
  catch
    {:uncastable, text} -> {:error, [%{pointer: "", message: text}]}
  end

  defp cast_to(data, spec) when is_map(spec), do: data
  defp cast_to(data, spec) when is_map_key(@scalars, spec), do: scalar(data, @scalars[spec]["format"])
  defp cast_to(nil, _spec), do: nil

  defp cast_to(data, module) when is_atom(module) do
    fields =
      for {name, spec} <- struct_fields(module),
          is_map_key(data, to_string(name)),
          do: {name, cast_field(data, name, spec)}

    struct(module, fields)
  end

  defp cast_to(data, {list, spec}) when list in [:list, :array], do: Enum.map(data, &cast_to(&1, spec))
  defp cast_to(data, {:map, spec}), do: Map.new(data, fn {key, value} -> {key, cast_to(value, spec)} end)
  defp cast_to(data, {:nullable, spec}), do: cast_to(data, spec)
  defp cast_to(data, {:enum, values}), do: Enum.find(values, data, &(Codec.plain(&1) == data))
  defp cast_to(_data, {:const, value}), do: value

  defp cast_to(data, {:tuple, specs}),
    do: data |> Enum.zip(specs) |> Enum.map(fn {item, spec} -> cast_to(item, spec) end) |> List.to_tuple()

  defp cast_to(data, {:one_of, specs}), do: cast_to(data, Enum.find(specs, :any, &(validate(data, &1) == :ok)))
  defp cast_to(data, {module, type}) when is_atom(module) and is_atom(type), do: cast_to(data, named(module, type))
  defp cast_to(data, {spec, options}) when is_list(options), do: cast_to(data, spec)
  defp cast_to(data, [{:type, spec} | _options]), do: cast_to(data, spec)
  defp cast_to(data, []), do: data

  defp cast_to(data, [{key, _spec} | _] = fields) when is_atom(key) do
    for {name, spec} <- fields, is_map_key(data, to_string(name)), into: %{}, do: {name, cast_field(data, name, spec)}
  end

  defp cast_to(data, [spec]), do: Enum.map(data, &cast_to(&1, spec))

  defp cast_field(data, name, spec), do: cast_to(data[to_string(name)], spec)

  defp scalar(text, "date") when is_binary(text), do: parsed(Date.from_iso8601(text), text)
  defp scalar(text, "time") when is_binary(text), do: parsed(Time.from_iso8601(text), text)

  defp scalar(text, "date-time") when is_binary(text) do
    with {:ok, time, _offset} <- DateTime.from_iso8601(text),
         do: time,
         else: (_naive -> parsed(NaiveDateTime.from_iso8601(text), text))
  end

  defp scalar(data, _format), do: data

  defp parsed({:ok, value}, _text), do: value
  defp parsed({:error, _reason}, text), do: throw({:uncastable, "#{inspect(text)} is no date or time"})
end
