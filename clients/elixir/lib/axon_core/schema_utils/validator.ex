defmodule AxonCore.SchemaUtils.Validator do
  @moduledoc "Validation of data against a JSON Schema; `AxonCore.SchemaUtils.validate/2` lists the supported keywords."

  @max_faults 20
  # Limit for nested schemas. Each `$ref` counts as a level, so that a recursive `$ref` ends.
  @max_depth 64

  @doc "Returns the faults of the data, at most #{@max_faults}, each with its JSON pointer."
  @spec faults(term, map | boolean) :: [AxonCore.SchemaUtils.fault()]
  def faults(data, schema), do: data |> judge(schema, "", schema, 0) |> Enum.take(@max_faults)

  defp judge(_data, true, _at, _root, _depth), do: []
  defp judge(_data, false, at, _root, _depth), do: fault(at, "the schema allows no value here")

  defp judge(_data, _schema, at, _root, depth) when depth > @max_depth,
    do: fault(at, "the schema is nested over #{@max_depth} deep")

  # An invalid schema is ignored here; the daemon refuses it.
  defp judge(_data, schema, _at, _root, _depth) when not is_map(schema), do: []

  defp judge(data, schema, at, root, depth) do
    Enum.flat_map(schema, fn {keyword, value} -> keyword(keyword, value, data, schema, {at, root, depth}) end)
  end

  defp keyword("type", types, data, _schema, {at, _root, _depth}) do
    types = List.wrap(types)

    if Enum.any?(types, &type?(&1, data)),
      do: [],
      else: fault(at, "#{shown(data)} is not of type #{Enum.map_join(types, " or ", &name/1)}")
  end

  defp keyword("enum", values, data, _schema, {at, _, _}) when is_list(values) do
    if Enum.any?(values, &(&1 == data)), do: [], else: fault(at, "#{shown(data)} is not one of #{shown(values)}")
  end

  defp keyword("const", value, data, _schema, {at, _, _}) do
    if data == value, do: [], else: fault(at, "#{shown(data)} is not #{shown(value)}")
  end

  defp keyword("required", names, data, _schema, {at, _, _}) when is_map(data) and is_list(names) do
    Enum.flat_map(names, &if(is_map_key(data, &1), do: [], else: fault(at, "#{name(&1)} is missing")))
  end

  defp keyword("properties", properties, data, _schema, place) when is_map(data) and is_map(properties) do
    for {name, schema} <- properties,
        is_map_key(data, name),
        fault <- within(data[name], schema, name, place),
        do: fault
  end

  defp keyword("additionalProperties", more, data, schema, place) when is_map(data) do
    known =
      with properties when is_map(properties) <- schema["properties"], do: Map.keys(properties), else: (_none -> [])

    for {name, value} <- Map.drop(data, known), fault <- additional(more, name, value, place), do: fault
  end

  defp keyword("prefixItems", schemas, data, _schema, place) when is_list(data) and is_list(schemas) do
    [data, schemas]
    |> Enum.zip()
    |> Enum.with_index()
    |> Enum.flat_map(fn {{item, schema}, index} -> within(item, schema, index, place) end)
  end

  defp keyword("items", schema, data, whole, place) when is_list(data) do
    first = with schemas when is_list(schemas) <- whole["prefixItems"], do: length(schemas), else: (_none -> 0)

    data
    |> Enum.with_index()
    |> Enum.drop(first)
    |> Enum.flat_map(fn {item, index} -> within(item, schema, index, place) end)
  end

  defp keyword("minItems", min, data, _s, {at, _, _}) when is_list(data) and is_number(min),
    do: at_least(length(data), min, at, "items")

  defp keyword("maxItems", max, data, _s, {at, _, _}) when is_list(data) and is_number(max),
    do: at_most(length(data), max, at, "items")

  # JSON Schema counts code points; `String.length/1` counts graphemes.
  defp keyword("minLength", min, data, _s, {at, _, _}) when is_binary(data) and is_number(min) do
    at_least(length(String.codepoints(data)), min, at, "characters")
  end

  defp keyword("maxLength", max, data, _s, {at, _, _}) when is_binary(data) and is_number(max) do
    at_most(length(String.codepoints(data)), max, at, "characters")
  end

  defp keyword("minimum", min, data, _s, {at, _, _}) when is_number(data) and is_number(min) and data < min do
    fault(at, "#{data} is less than #{min}")
  end

  defp keyword("maximum", max, data, _s, {at, _, _}) when is_number(data) and is_number(max) and data > max do
    fault(at, "#{data} is more than #{max}")
  end

  defp keyword("pattern", pattern, data, _schema, {at, _, _}) when is_binary(data) and is_binary(pattern) do
    case Regex.compile(pattern, "u") do
      {:ok, regex} ->
        if String.valid?(data) and data =~ regex, do: [], else: fault(at, "#{shown(data)} does not match #{pattern}")

      {:error, _reason} ->
        []
    end
  end

  defp keyword("allOf", schemas, data, _schema, {at, root, depth}) when is_list(schemas) do
    Enum.flat_map(schemas, &judge(data, &1, at, root, depth + 1))
  end

  defp keyword("anyOf", schemas, data, _schema, {at, root, depth}) when is_list(schemas) do
    if Enum.any?(schemas, &(judge(data, &1, at, root, depth + 1) == [])),
      do: [],
      else: fault(at, "#{shown(data)} fits none of the schemas of `anyOf`")
  end

  defp keyword("oneOf", schemas, data, _schema, {at, root, depth}) when is_list(schemas) do
    case Enum.count(schemas, &(judge(data, &1, at, root, depth + 1) == [])) do
      1 -> []
      fitting -> fault(at, "#{shown(data)} fits #{fitting} schemas of `oneOf`, expected exactly one")
    end
  end

  defp keyword("not", schema, data, _whole, {at, root, depth}) do
    if judge(data, schema, at, root, depth + 1) == [],
      do: fault(at, "#{shown(data)} fits the schema of `not`"),
      else: []
  end

  defp keyword("$ref", "#" <> pointer, data, _schema, {at, root, depth}) do
    case pointer |> String.split("/", trim: true) |> Enum.reduce(root, &step(unescape(&1), &2)) do
      schema when is_map(schema) or is_boolean(schema) -> judge(data, schema, at, root, depth + 1)
      _none -> fault(at, "the schema has no part ##{pointer}")
    end
  end

  defp keyword(_other, _value, _data, _schema, _place), do: []

  defp step(key, place) when is_map(place), do: place[key]

  defp step(key, place) when is_list(place) do
    with {index, ""} <- Integer.parse(key), do: Enum.at(place, index), else: (_no_index -> nil)
  end

  defp step(_key, _leaf), do: nil

  defp additional(false, name, _value, {at, _root, _depth}), do: fault("#{at}/#{escape(name)}", "unknown key")
  defp additional(schema, name, value, place), do: within(value, schema, name, place)

  defp within(data, schema, name, {at, root, depth}), do: judge(data, schema, "#{at}/#{escape(name)}", root, depth + 1)

  defp at_least(size, min, at, unit),
    do: if(size < min, do: fault(at, "#{size} #{unit}, expected at least #{min}"), else: [])

  defp at_most(size, max, at, unit),
    do: if(size > max, do: fault(at, "#{size} #{unit}, expected at most #{max}"), else: [])

  defp type?("string", data), do: is_binary(data)
  defp type?("integer", data), do: is_integer(data) or (is_float(data) and trunc(data) == data)
  defp type?("number", data), do: is_number(data)
  defp type?("boolean", data), do: is_boolean(data)
  defp type?("null", data), do: data == nil
  defp type?("array", data), do: is_list(data)
  defp type?("object", data), do: is_map(data) and not is_struct(data)
  defp type?(_unknown, _data), do: true

  defp fault(at, message), do: [%{pointer: at, message: message}]
  defp name(name), do: if(is_binary(name), do: name, else: inspect(name))
  defp shown(data), do: inspect(data, limit: 5, printable_limit: 60)
  defp escape(name), do: name |> to_string() |> String.replace("~", "~0") |> String.replace("/", "~1")
  defp unescape(name), do: name |> String.replace("~1", "/") |> String.replace("~0", "~")
end
