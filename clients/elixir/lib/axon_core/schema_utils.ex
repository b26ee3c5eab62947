defmodule AxonCore.SchemaUtils do
  @moduledoc """
  JSON Schema (draft 2020-12) from Elixir types, and validation and casting of data.

  Use it for the arguments and results of tools, and for the output of agents.

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
  | a map | the map itself, which is a JSON Schema already |
  | `:string` `:integer` `:number` `:float` `:boolean` `:map` `:any` `nil` | the type of that name |
  | `:date` `:time` `:datetime` (and Ecto's names), `Date` `Time` `DateTime` `NaiveDateTime` | string of that format |
  | `{:list, spec}`, `{:array, spec}`, `[spec]` (unless `spec` is a pair) | array of such items |
  | `{:map, spec}` | object with such values |
  | `{:tuple, [spec, …]}` | array of exactly these items |
  | `{:enum, [value, …]}`, `{:const, value}` | one of these values; atoms become strings |
  | `{:nullable, spec}` | the spec, or null |
  | `{:one_of, [spec, …]}` | any of the specs |
  | `[field: spec, …]`, `{:object, [{field, spec}, …]}` | object with these fields. Field names are atoms; in the second form they may be strings. |
  | `[type: spec, …options]`, `{spec, options}` (except `{:map, …}`, see above) | the spec with the options `doc`, `min`, `max`, `pattern`, `format`, `default`, `required` |
  | module of a struct | object with the struct's fields, whose types come from its `@type t` or Ecto schema if it has one |
  | `{Module, :type}` | the `@type type` of that module |

  - A field is optional if it has `required: false` or a `default`. A field of a struct is required only if the struct
    enforces it.
  - `min` and `max` bound the value of a number, the length of a string, or the size of an array.
  - If the first field of an object is called `type`, write `{:object, […]}`: otherwise the list is read as options.
  - A struct that contains itself is expanded once; the inner occurrence accepts any value. Schemas are written out in
    full, without references.
  """

  alias AxonCore.{Codec, Error, Options}
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
  @modules %{Date => :date, Time => :time, DateTime => :datetime, NaiveDateTime => :naive_datetime, String => :string}
  @bounds %{
    "string" => {"minLength", "maxLength"},
    "array" => {"minItems", "maxItems"},
    "integer" => {"minimum", "maximum"},
    "number" => {"minimum", "maximum"}
  }
  @options ~w(type doc min max pattern format default required)a
  # A pair whose first element is one of these is a spec. Any other pair with a list is a spec and its options.
  @forms ~w(list array map object tuple enum const one_of nullable)a

  # --- to JSON Schema ------------------------------------------------------------------------------

  @doc """
  Converts a spec to a JSON Schema with string keys.

  Raises `AxonCore.Error` (`:invalid_argument`) if the spec is invalid.
  """
  @spec to_json_schema(spec) :: map
  def to_json_schema(spec), do: schema(spec, [])

  # `within` holds the enclosing structs, to stop the recursion at a struct that contains itself.
  defp schema(spec, _within) when is_map(spec) and not is_struct(spec), do: Codec.plain(spec)
  defp schema(spec, _within) when is_map_key(@scalars, spec), do: @scalars[spec]
  defp schema(module, _within) when is_map_key(@modules, module), do: @scalars[@modules[module]]

  defp schema(module, within) when is_atom(module) do
    if module in within, do: %{}, else: module |> struct_fields() |> object([module | within])
  end

  defp schema({list, spec}, within) when list in [:list, :array],
    do: %{"type" => "array", "items" => schema(spec, within)}

  defp schema({:map, spec}, within), do: %{"type" => "object", "additionalProperties" => schema(spec, within)}
  defp schema({:object, fields}, within), do: object(fields, within)
  defp schema({:enum, values}, _within) when is_list(values), do: %{"enum" => json(values)}
  defp schema({:const, value}, _within), do: %{"const" => json(value)}
  defp schema({:one_of, specs}, within) when is_list(specs), do: %{"anyOf" => Enum.map(specs, &schema(&1, within))}
  defp schema({:nullable, spec}, within), do: spec |> schema(within) |> nullable()

  defp schema({:tuple, specs}, within) when is_list(specs) do
    items = Enum.map(specs, &schema(&1, within))
    size = length(items)
    %{"type" => "array", "prefixItems" => items, "minItems" => size, "maxItems" => size}
  end

  defp schema({module, type}, within) when is_atom(module) and is_atom(type),
    do: module |> named(type) |> schema(within)

  defp schema({spec, options}, within) when is_list(options), do: spec |> schema(within) |> with_options(options)
  defp schema([], _within), do: object([], [])
  defp schema([{:type, spec} | options], within), do: spec |> schema(within) |> with_options(options)
  defp schema([{key, _spec} | _] = fields, within) when is_atom(key), do: object(fields, within)
  defp schema([spec], within), do: schema({:list, spec}, within)

  defp schema(other, _within),
    do: raise(Error.new(:invalid_argument, "invalid spec #{inspect(other)}: see the table in AxonCore.SchemaUtils"))

  defp json(value), do: value |> Codec.plain() |> Codec.times_as_text()

  defp object(fields, within) do
    if not fields?(fields),
      do: raise(Error.new(:invalid_argument, "invalid fields #{inspect(fields)}: expected a list of {name, spec}"))

    required = for {name, spec} <- fields, required?(spec), do: to_string(name)
    properties = Map.new(fields, fn {name, spec} -> {to_string(name), schema(spec, within)} end)
    schema = %{"type" => "object", "properties" => properties, "additionalProperties" => false}
    if required == [], do: schema, else: Map.put(schema, "required", required)
  end

  defp fields?([]), do: true
  defp fields?([{name, _spec} | rest]) when is_atom(name) or is_binary(name), do: fields?(rest)
  defp fields?(_other), do: false

  defp required?(spec) do
    options = options_of(spec)
    Keyword.get(options, :required, not Keyword.has_key?(options, :default))
  end

  defp options_of({form, _spec}) when form in @forms, do: []
  defp options_of({_spec, options}) when is_list(options), do: if(Keyword.keyword?(options), do: options, else: [])
  defp options_of([{:type, _spec} | options]), do: options
  defp options_of(_spec), do: []

  defp with_options(schema, options) do
    Enum.reduce(options, schema, fn
      {:doc, doc}, schema ->
        Map.put(schema, "description", doc)

      {:default, default}, schema ->
        Map.put(schema, "default", json(default))

      {:pattern, %Regex{source: source} = regex}, schema ->
        if Regex.opts(regex) not in ["", [], "u", [:unicode]],
          do:
            raise(Error.new(:invalid_argument, "invalid pattern #{inspect(regex)}: JSON Schema supports no modifiers"))

        Map.put(schema, "pattern", source)

      {key, value}, schema when key in [:pattern, :format] ->
        Map.put(schema, to_string(key), to_string(value))

      {bound, value}, schema when bound in [:min, :max] ->
        Map.put(schema, bound(schema, bound), value)

      {:required, _required}, schema ->
        schema

      {other, _value}, _schema ->
        raise Error.new(:invalid_argument, "unknown option #{inspect(other)} of a spec; known: #{inspect(@options)}")

      other, _schema ->
        raise Error.new(:invalid_argument, "invalid option #{inspect(other)} of a spec; known: #{inspect(@options)}")
    end)
  end

  defp bound(%{"type" => type}, which) when is_map_key(@bounds, type) do
    {min, max} = @bounds[type]
    if which == :min, do: min, else: max
  end

  defp bound(%{"type" => [type, "null"]}, which), do: bound(%{"type" => type}, which)

  defp bound(schema, which) do
    text = "invalid option #{inspect(which)}: only strings, numbers and arrays have bounds, not #{inspect(schema)}"
    raise Error.new(:invalid_argument, text)
  end

  defp nullable(%{"type" => type} = schema) when is_binary(type), do: %{schema | "type" => [type, "null"]}
  defp nullable(%{"enum" => values} = schema), do: %{schema | "enum" => values ++ [nil]}
  defp nullable(schema), do: %{"anyOf" => [schema, %{"type" => "null"}]}

  defp named(module, :t) when is_map_key(@modules, module), do: @modules[module]

  defp named(module, type) do
    case Structs.type(module, type) do
      {:ok, spec} -> spec
      :error -> raise Error.new(:invalid_argument, "type #{type} of #{inspect(module)} not found in its BEAM file")
    end
  end

  defp struct_fields(module) do
    case Structs.fields(module) do
      {:ok, fields} ->
        fields

      :error ->
        raise Error.new(:invalid_argument, "invalid spec #{inspect(module)}: neither a type nor a struct module")
    end
  end

  # --- from JSON Schema ----------------------------------------------------------------------------

  @doc """
  Converts a JSON Schema to a spec. Parts that no spec can express remain schemas.

  Field names are strings: `{:object, [{"city", :string}]}`. With `keys: :atoms` they are atoms: `[city: :string]`.

  #{AxonCore.Options.docs(:from_json_schema)}
  """
  @spec from_json_schema(map, keys: :strings | :atoms) :: spec
  def from_json_schema(schema, options \\ []) do
    case Options.validate!(options, :from_json_schema)[:keys] do
      :strings -> back(Codec.plain(schema), &{:object, &1})
      :atoms -> back(Codec.plain(schema), &with_atoms/1)
    end
  end

  defp with_atoms(fields) do
    case for {name, spec} <- fields, do: {String.to_atom(name), spec} do
      [{:type, _spec} | _] = fields -> {:object, fields}
      fields -> fields
    end
  end

  # `fields` is a function that turns the fields of an object into its spec.
  defp back(true, _fields), do: :any
  defp back(false, _fields), do: %{"not" => %{}}

  defp back(schema, fields) do
    {spec, rest} = bare(schema, fields)
    options = for {key, option} <- option_names(schema), is_map_key(rest, key), do: {option, rest[key]}

    cond do
      Map.drop(rest, Map.keys(option_names(schema))) != %{} -> schema
      options == [] -> spec
      true -> [{:type, spec} | options]
    end
  end

  defp bare(%{"type" => "object", "properties" => properties, "additionalProperties" => false} = schema, fields)
       when is_map(properties) do
    {required, unknown} = Enum.split_with(schema["required"] || [], &is_map_key(properties, &1))
    own = for {name, field} <- Enum.sort(properties), do: {name, optional(back(field, fields), name in required)}
    rest = Map.drop(schema, ~w(type properties required additionalProperties))
    {fields.(own), if(unknown == [], do: rest, else: schema)}
  end

  defp bare(%{"type" => "object", "additionalProperties" => values} = schema, fields)
       when is_map(values) and not is_map_key(schema, "properties") do
    {{:map, back(values, fields)}, Map.drop(schema, ~w(type additionalProperties))}
  end

  defp bare(%{"type" => "array", "prefixItems" => items, "minItems" => size, "maxItems" => size} = schema, fields)
       when length(items) == size do
    {{:tuple, Enum.map(items, &back(&1, fields))}, Map.drop(schema, ~w(type prefixItems minItems maxItems))}
  end

  defp bare(%{"type" => "array"} = schema, fields) do
    {{:list, back(schema["items"] || %{}, fields)}, Map.drop(schema, ~w(type items))}
  end

  defp bare(%{"type" => [type, "null"]} = schema, fields) do
    {spec, rest} = bare(%{schema | "type" => type}, fields)
    {{:nullable, spec}, rest}
  end

  defp bare(%{"enum" => values} = schema, _fields), do: {{:enum, values}, Map.drop(schema, ~w(enum type))}
  defp bare(%{"const" => value} = schema, _fields), do: {{:const, value}, Map.drop(schema, ~w(const type))}

  defp bare(%{"anyOf" => schemas} = schema, fields),
    do: {{:one_of, Enum.map(schemas, &back(&1, fields))}, Map.delete(schema, "anyOf")}

  defp bare(%{"type" => "string", "format" => "date"} = schema, _fields), do: {:date, Map.drop(schema, ~w(type format))}
  defp bare(%{"type" => "string", "format" => "time"} = schema, _fields), do: {:time, Map.drop(schema, ~w(type format))}

  defp bare(%{"type" => "string", "format" => "date-time"} = schema, _fields),
    do: {:datetime, Map.drop(schema, ~w(type format))}

  defp bare(%{"type" => "object"} = schema, _fields), do: {:map, Map.delete(schema, "type")}

  defp bare(%{"type" => type} = schema, _fields) when type in ~w(string integer number boolean null) do
    {String.to_existing_atom(type), Map.delete(schema, "type")}
  end

  defp bare(schema, _fields) when schema == %{}, do: {:any, %{}}
  defp bare(schema, _fields), do: {:any, schema}

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
  Checks decoded data, such as a result of the daemon, against a schema or a spec.

  The daemon itself validates arguments and results; this function is for checks in the application. It supports the
  keywords that specs generate, and `allOf`, `oneOf`, `not`, and a `$ref` into the same schema. It ignores all other
  keywords. It also ignores `format`; `cast/2` checks whether a string is a date or time.
  """
  @spec validate(term, spec) :: :ok | {:error, [fault]}
  def validate(data, spec) do
    case Validator.faults(data, to_json_schema(spec)) do
      [] -> :ok
      faults -> {:error, faults}
    end
  end

  @doc """
  Validates data and converts it to the Elixir terms that the spec describes.

  | spec | result |
  |---|---|
  | module of a struct | that struct |
  | fields | map with the field names as keys |
  | date or time | `Date`, `Time`, `DateTime` or `NaiveDateTime` |
  | `{:enum, atoms}` | atom |
  | `{:tuple, specs}` | tuple |
  """
  @spec cast(term, spec) :: {:ok, term} | {:error, [fault]}
  def cast(data, spec), do: cast(data, spec, [])

  defp cast(data, spec, within) do
    with :ok <- validate(data, spec) do
      {:ok, cast_to(data, spec, within)}
    end
  catch
    {:uncastable, text} -> {:error, [%{pointer: "", message: text}]}
  end

  defp cast_to(data, spec, _within) when is_map(spec), do: data
  defp cast_to(data, spec, _within) when is_map_key(@scalars, spec), do: scalar(data, @scalars[spec]["format"])

  defp cast_to(data, module, _within) when is_map_key(@modules, module),
    do: scalar(data, @scalars[@modules[module]]["format"])

  defp cast_to(nil, _spec, _within), do: nil

  # A struct inside itself accepts any value (see `schema/2`); it becomes the struct only if it fits.
  defp cast_to(data, module, within) when is_atom(module) do
    if module not in within or validate(data, module) == :ok,
      do: struct(module, cast_fields(data, struct_fields(module), [module | within])),
      else: data
  end

  defp cast_to(data, {list, spec}, within) when list in [:list, :array], do: Enum.map(data, &cast_to(&1, spec, within))
  defp cast_to(data, {:object, fields}, within), do: cast_fields(data, fields, within)

  defp cast_to(data, {:map, spec}, within),
    do: Map.new(data, fn {key, value} -> {key, cast_to(value, spec, within)} end)

  defp cast_to(data, {:nullable, spec}, within), do: cast_to(data, spec, within)
  defp cast_to(data, {:enum, values}, _within), do: Enum.find(values, data, &(json(&1) == data))
  defp cast_to(_data, {:const, value}, _within), do: value

  defp cast_to(data, {:tuple, specs}, within),
    do: data |> Enum.zip(specs) |> Enum.map(fn {item, spec} -> cast_to(item, spec, within) end) |> List.to_tuple()

  # Each spec is cast and not only validated, because a string that fits the schema of a date need not be a date.
  defp cast_to(data, {:one_of, specs}, within) do
    {:ok, value} =
      Enum.find_value(specs, {:ok, data}, fn spec ->
        with {:error, _faults} <- cast(data, spec, within), do: nil
      end)

    value
  end

  defp cast_to(data, {module, type}, within) when is_atom(module) and is_atom(type),
    do: cast_to(data, named(module, type), within)

  defp cast_to(data, {spec, options}, within) when is_list(options), do: cast_to(data, spec, within)
  defp cast_to(data, [{:type, spec} | _options], within), do: cast_to(data, spec, within)
  defp cast_to(data, [], _within), do: data

  defp cast_to(data, [{key, _spec} | _] = fields, within) when is_atom(key), do: cast_fields(data, fields, within)

  defp cast_to(data, [spec], within), do: Enum.map(data, &cast_to(&1, spec, within))

  defp cast_fields(data, fields, within) do
    for {name, spec} <- fields,
        key = to_string(name),
        is_map_key(data, key),
        into: %{},
        do: {name, cast_to(data[key], spec, within)}
  end

  defp scalar(text, "date") when is_binary(text), do: parsed(Date.from_iso8601(text), text)
  defp scalar(text, "time") when is_binary(text), do: parsed(Time.from_iso8601(normalized(text)), text)

  defp scalar(text, "date-time") when is_binary(text) do
    with {:ok, time, _offset} <- DateTime.from_iso8601(normalized(text)),
         do: time,
         else: (_naive -> parsed(NaiveDateTime.from_iso8601(normalized(text)), text))
  end

  defp scalar(data, _format), do: data

  # RFC 3339 allows lower case letters and leap seconds, and ISO 8601 allows times without seconds. Elixir parses none
  # of these.
  defp normalized(text) do
    text = String.upcase(text)
    text = Regex.replace(~r/(^|[T ])(\d\d:\d\d)(?=$|Z|[+-])/, text, "\\1\\2:00")
    Regex.replace(~r/(:\d\d:)60/, text, "\\g{1}59")
  end

  defp parsed({:ok, value}, _text), do: value
  defp parsed({:error, _reason}, text), do: throw({:uncastable, "invalid date or time #{inspect(text)}"})
end
