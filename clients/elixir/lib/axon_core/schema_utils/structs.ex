defmodule AxonCore.SchemaUtils.Structs do
  @moduledoc "Specs for the fields of a struct, from its Ecto schema, its `@type t`, or its default values."

  @doc "Returns names and specs of a struct's fields, or `:error` if the module defines no struct."
  @spec fields(module) :: {:ok, [{atom, AxonCore.SchemaUtils.spec()}]} | :error
  def fields(module) do
    cond do
      not struct?(module) -> :error
      function_exported?(module, :__schema__, 2) -> {:ok, of_ecto(module)}
      true -> {:ok, cached(module)}
    end
  end

  # Cached, because reading types from a BEAM file takes a millisecond. A recompiled module has another checksum.
  defp cached(module) do
    key = {__MODULE__, module, module.module_info(:md5)}
    :persistent_term.get(key, nil) || tap(of_struct(module), &:persistent_term.put(key, &1))
  end

  defp struct?(module), do: Code.ensure_loaded?(module) and function_exported?(module, :__struct__, 0)

  @doc "Returns the spec of a module's type, or `:error` if the BEAM file of the module has no such type."
  @spec type(module, atom) :: {:ok, AxonCore.SchemaUtils.spec()} | :error
  def type(module, name) do
    with {:ok, ast} <- ast(module, name), do: {:ok, spec(ast, {module, [{module, name}]})}
  end

  defp ast(module, name) do
    with {:ok, types} <- Code.Typespec.fetch_types(module),
         {_kind, {^name, ast, []}} <- Enum.find(types, &match?({_kind, {^name, _ast, []}}, &1)) do
      {:ok, ast}
    else
      _none -> :error
    end
  end

  # --- Ecto ----------------------------------------------------------------------------------------

  defp of_ecto(module) do
    for field <- module.__schema__(:fields), do: {field, [type: ecto(module.__schema__(:type, field)), required: false]}
  end

  defp ecto({:array, type}), do: {:list, ecto(type)}
  defp ecto({:map, type}), do: {:map, ecto(type)}
  defp ecto({:parameterized, Ecto.Enum, %{mappings: mappings}}), do: {:enum, Keyword.keys(mappings)}
  defp ecto({:parameterized, {Ecto.Enum, %{mappings: mappings}}}), do: {:enum, Keyword.keys(mappings)}
  defp ecto({:parameterized, Ecto.Embedded, embedded}), do: embedded(embedded)
  defp ecto({:parameterized, {Ecto.Embedded, embedded}}), do: embedded(embedded)
  defp ecto(type) when is_tuple(type), do: :any

  defp ecto(type) do
    if match?("Elixir." <> _, Atom.to_string(type)), do: :any, else: type
  end

  defp embedded(%{cardinality: :many, related: module}), do: {:list, module}
  defp embedded(%{related: module}), do: {:nullable, module}

  # --- typespecs -----------------------------------------------------------------------------------

  defp of_struct(module) do
    defaults = module.__struct__() |> Map.from_struct()
    enforced = enforced(module)
    types = types(module)

    for {name, default} <- Enum.sort(defaults) do
      required = name in enforced
      spec = Map.get(types, name, :any)
      {name, if(required, do: spec, else: optional(spec, default))}
    end
  end

  defp optional(spec, nil), do: [type: spec, required: false]

  defp optional(spec, default) do
    case AxonCore.Codec.to_plain(default) do
      {:ok, _plain} -> [type: spec, default: default]
      # The default, such as a tuple or a function, has no form in JSON, so the schema cannot contain it.
      {:error, _error} -> [type: spec, required: false]
    end
  end

  # The enforced keys are read from the error that `__struct__/1` raises if they are missing.
  defp enforced(module) do
    module.__struct__([])
    []
  rescue
    error in ArgumentError ->
      Regex.scan(~r/:(\w+[?!]?)/, keys_of(error)) |> Enum.map(fn [_, name] -> String.to_existing_atom(name) end)
  end

  defp keys_of(%ArgumentError{message: message}), do: message |> String.split("keys must also be given") |> List.last()

  defp types(module) do
    with {:ok, {:type, _, :map, fields}} <- ast(module, :t) do
      for {:type, _, _exact, [{:atom, _, name}, ast]} <- fields, name != :__struct__, into: %{} do
        {name, spec(ast, {module, [{module, :t}]})}
      end
    else
      _none -> %{}
    end
  end

  defp spec({:type, _, :union, members}, known), do: union(members, known)
  defp spec({:type, _, :list, [item]}, known), do: {:list, spec(item, known)}
  defp spec({:type, _, :nonempty_list, [item]}, known), do: [type: {:list, spec(item, known)}, min: 1]
  defp spec({:type, _, :tuple, items}, known) when is_list(items), do: {:tuple, Enum.map(items, &spec(&1, known))}
  defp spec({:type, _, name, []}, _known) when name in [:integer, :float, :number, :boolean, :binary], do: scalar(name)
  defp spec({:type, _, :pos_integer, []}, _known), do: [type: :integer, min: 1]
  defp spec({:type, _, :non_neg_integer, []}, _known), do: [type: :integer, min: 0]

  defp spec({:type, _, :range, [{:integer, _, low}, {:integer, _, high}]}, _known),
    do: [type: :integer, min: low, max: high]

  defp spec({:type, _, :map, _any}, _known), do: :map
  defp spec({:atom, _, nil}, _known), do: nil
  defp spec({:atom, _, value}, _known), do: {:const, value}
  defp spec({:integer, _, value}, _known), do: {:const, value}

  defp spec({:remote_type, _, [{:atom, _, module}, {:atom, _, :t}, []]}, _known)
       when module in [String, Date, Time, DateTime, NaiveDateTime],
       do: module

  defp spec({:remote_type, _, [{:atom, _, module}, {:atom, _, name}, []]}, {itself, seen}) do
    cond do
      name == :t and module != itself and struct?(module) -> module
      match?("Elixir." <> _, Atom.to_string(module)) -> named(module, name, seen)
      # Types of Erlang modules may refer to very many other types, and become huge when written out.
      true -> :any
    end
  end

  defp spec({:user_type, _, name, []}, {module, seen}), do: named(module, name, seen)
  defp spec({:ann_type, _, [_name, ast]}, known), do: spec(ast, known)
  defp spec(_other, _known), do: :any

  # A type inside itself accepts any value, because schemas are written out in full.
  defp named(module, name, seen) do
    with false <- {module, name} in seen,
         {:ok, ast} <- ast(module, name) do
      spec(ast, {module, [{module, name} | seen]})
    else
      _seen_or_none -> :any
    end
  end

  defp scalar(:binary), do: :string
  defp scalar(name), do: name

  defp union(members, known) do
    {nulls, others} = members |> Enum.map(&spec(&1, known)) |> Enum.split_with(&(&1 == nil))
    constants = for {:const, value} <- others, do: value

    spec =
      cond do
        length(constants) == length(others) -> {:enum, constants}
        match?([_one], others) -> hd(others)
        true -> {:one_of, others}
      end

    if nulls == [], do: spec, else: {:nullable, spec}
  end
end
