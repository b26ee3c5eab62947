defmodule AxonCore.SchemaUtilsTest do
  use ExUnit.Case, async: true
  doctest AxonCore.SchemaUtils

  alias AxonCore.{Error, SchemaUtils}
  alias AxonCore.Fixtures.{Child, LikeEcto, Odd, Parent, Place, Plain, Trip}

  @specs [
    :string,
    :integer,
    :boolean,
    :date,
    :datetime,
    {:list, :string},
    {:map, :integer},
    {:tuple, [:string, :integer]},
    {:enum, ["a", "b"]},
    {:nullable, :string},
    {:one_of, [:string, :integer]},
    [type: :integer, min: 1, max: 5, doc: "How many."],
    [type: :map, doc: "Anything."],
    [a: [type: :map, required: false], b: [type: {:map, :integer}, doc: "Counts."]],
    [type: {:nullable, :integer}, min: 1],
    [a: :string, b: [type: :integer, required: false]],
    {:object, [type: :string, what: {:list, [default: :string]}]}
  ]

  test "specs are converted to JSON Schema and back" do
    for spec <- @specs do
      schema = SchemaUtils.to_json_schema(spec)
      assert SchemaUtils.to_json_schema(SchemaUtils.from_json_schema(schema)) == schema, inspect(spec)
      assert SchemaUtils.to_json_schema(SchemaUtils.from_json_schema(schema, keys: :atoms)) == schema, inspect(spec)
    end
  end

  test "field names become atoms only with keys: :atoms" do
    schema = SchemaUtils.to_json_schema(a: :string, b: [c: :integer])
    assert SchemaUtils.from_json_schema(schema) == {:object, [{"a", :string}, {"b", {:object, [{"c", :integer}]}}]}
    assert SchemaUtils.from_json_schema(schema, keys: :atoms) == [a: :string, b: [c: :integer]]

    assert SchemaUtils.cast(%{"a" => "x", "b" => %{"c" => 1}}, SchemaUtils.from_json_schema(schema)) ==
             {:ok, %{"a" => "x", "b" => %{"c" => 1}}}
  end

  test "fields may have the names of options" do
    assert %{"properties" => %{"type" => _, "min" => _}, "required" => ["type", "min"]} =
             SchemaUtils.to_json_schema({:object, [type: :string, min: :integer]})

    assert %{"required" => ["list"]} = SchemaUtils.to_json_schema(list: {:list, [name: :string, default: :integer]})
  end

  test "structs that contain each other are expanded once" do
    schema = SchemaUtils.to_json_schema(Parent)
    child = schema["properties"]["children"]["items"]
    assert child["properties"]["of"] == %{"anyOf" => [%{}, %{"type" => "null"}]}
    inner = %{"name" => "a", "of" => %{"name" => "b"}}

    assert {:ok, %Parent{children: [%Child{of: %Parent{name: "b"}}]}} =
             SchemaUtils.cast(%{"name" => "p", "children" => [inner]}, Parent)

    odd = %{"name" => "p", "children" => [%{"of" => 5}]}
    assert {:ok, %Parent{children: [%Child{of: 5}]}} = SchemaUtils.cast(odd, Parent)
  end

  test "a schema that no spec can express remains a schema" do
    for schema <- [
          %{"type" => "string", "contentEncoding" => "base64"},
          %{"type" => "object", "properties" => %{"a" => %{"type" => "string"}}},
          %{"type" => "object", "properties" => %{}, "additionalProperties" => %{"type" => "string"}},
          %{"type" => "object", "properties" => %{}, "additionalProperties" => false, "required" => ["a"]},
          %{"type" => "object", "additionalProperties" => false},
          %{"type" => "array", "prefixItems" => [%{"type" => "string"}], "items" => %{"type" => "integer"}}
        ] do
      assert SchemaUtils.from_json_schema(schema) == schema
    end

    open = %{"type" => "object", "properties" => %{"a" => true, "b" => false}, "additionalProperties" => false}
    spec = SchemaUtils.from_json_schema(open)
    assert SchemaUtils.validate(%{"a" => 1}, spec) == :ok
    assert {:error, [_]} = SchemaUtils.validate(%{"b" => 1}, spec)
  end

  test "the schema of a struct is derived from its type" do
    schema = SchemaUtils.to_json_schema(Place)
    assert schema["required"] == ["name"]
    properties = schema["properties"]
    assert properties["name"] == %{"type" => "string"}
    assert properties["founded"] == %{"type" => ["string", "null"], "format" => "date"}
    assert properties["mood"] == %{"enum" => ["good", "bad", nil]}
    assert properties["inhabitants"] == %{"type" => "integer", "minimum" => 0, "default" => 0}
    assert properties["kind"] == %{"enum" => ["town", "village"], "default" => "town"}
    assert properties["tags"] == %{"type" => "array", "items" => %{"type" => "string"}, "default" => []}
    trip = SchemaUtils.to_json_schema(Trip)
    assert trip["properties"]["from"] == schema
    assert trip["properties"]["days"] == %{"type" => "integer", "minimum" => 1, "maximum" => 30, "default" => 1}
  end

  test "a spec may name any type of a module" do
    assert SchemaUtils.to_json_schema({Place, :kind}) == %{"enum" => ["town", "village"]}
    assert SchemaUtils.cast("town", {Place, :kind}) == {:ok, :town}
    assert_raise Error, ~r/type nothing of .* not found/, fn -> SchemaUtils.to_json_schema({Place, :nothing}) end
  end

  test "the schema of a struct is derived from its Ecto schema or its defaults" do
    properties = SchemaUtils.to_json_schema(LikeEcto)["properties"]
    assert properties["mood"] == %{"enum" => ["good", "bad"]}
    assert properties["tags"] == %{"type" => "array", "items" => %{"type" => "string"}}
    assert properties["at"] == %{"type" => "string", "format" => "date-time"}
    assert properties["meta"] == %{"type" => "object"}
    assert SchemaUtils.to_json_schema(Plain)["properties"] == %{"anything" => %{}, "size" => %{"default" => 3}}
  end

  test "struct fields may have any type and default, and types of other modules" do
    schema = SchemaUtils.to_json_schema(Odd)
    refute is_map_key(schema, "required")
    properties = schema["properties"]
    assert properties["meta"] == %{"type" => "object", "default" => %{}}
    assert properties["more"] == %{"type" => "object"}
    assert properties["color"] == %{"enum" => ["red", "green"]}
    assert properties["run"] == %{}
    assert %{"type" => "array", "minItems" => 2} = properties["size"]
    refute is_map_key(properties["size"], "default")

    assert {:ok, %Odd{meta: %{"k" => "v"}, color: :green, size: {3, 4}}} =
             SchemaUtils.cast(%{"meta" => %{"k" => "v"}, "color" => "green", "size" => [3, 4]}, Odd)

    assert {:ok, %Odd{size: {1, 2}}} = SchemaUtils.cast(%{}, Odd)
    assert SchemaUtils.to_json_schema(day: Date)["properties"] == %{"day" => %{"type" => "string", "format" => "date"}}
    assert SchemaUtils.cast(%{"day" => "2026-01-02"}, day: Date) == {:ok, %{day: ~D[2026-01-02]}}
    assert SchemaUtils.cast("2026-01-02", {Date, :t}) == {:ok, ~D[2026-01-02]}
  end

  test "dates and times are cast from all their forms, but not for a format alone" do
    assert SchemaUtils.cast("tomorrow", {:one_of, [:date, :string]}) == {:ok, "tomorrow"}
    assert SchemaUtils.cast("2026-01-02", {:one_of, [:date, :string]}) == {:ok, ~D[2026-01-02]}
    assert {:error, [%{message: message}]} = SchemaUtils.cast(%{"a" => "2020-13-77"}, a: :date)
    assert message =~ "invalid date or time"

    for {text, spec, time} <- [
          {"14:30", :time, ~T[14:30:00]},
          {"23:59:60z", :time, ~T[23:59:59]},
          {"2026-01-02t03:04:05z", :datetime, ~U[2026-01-02 03:04:05Z]},
          {"2026-01-02T03:04+01:00", :datetime, ~U[2026-01-02 02:04:00Z]},
          {"2026-01-02T03:04:05.678", :naive_datetime, ~N[2026-01-02 03:04:05.678]}
        ] do
      assert SchemaUtils.cast(text, spec) == {:ok, time}
    end

    assert SchemaUtils.cast("soon", type: :string, format: "date-time") == {:ok, "soon"}
    then = ~U[2024-01-01 00:00:00Z]
    assert SchemaUtils.cast("2024-01-01T00:00:00Z", {:enum, [then]}) == {:ok, then}
    assert SchemaUtils.validate("2024-01-01T00:00:00Z", {:const, then}) == :ok
  end

  test "the error about an invalid spec names the invalid part" do
    for {spec, part} <- [
          {[type: :string, pattern: ~r/^a$/i], "supports no modifiers"},
          {"text", "text"},
          {NoSuchModule, "NoSuchModule"},
          {[type: :integer, maximum: 3], ":maximum"},
          {{:tuple, :string}, "tuple"},
          {{:one_of, :string}, "one_of"},
          {{:enum, :a}, "enum"},
          {{:object, :string}, "fields"},
          {[:string, :integer], "invalid spec"},
          {[{:a, :string}, :b], "fields"},
          {{:string, [:min]}, "invalid option :min"}
        ] do
      assert_raise Error, ~r/#{part}/, fn -> SchemaUtils.to_json_schema(spec) end
    end
  end

  test "faults have the JSON pointer of the value" do
    spec = [city: :string, days: [type: :integer, min: 1, required: false], tags: {:list, :string}]
    assert SchemaUtils.validate(%{"city" => "Oslo", "days" => 3, "tags" => ["a"]}, spec) == :ok
    {:error, faults} = SchemaUtils.validate(%{"days" => 0, "tags" => ["a", 2], "more" => 1}, spec)
    assert Enum.sort(Enum.map(faults, & &1.pointer)) == ["", "/days", "/more", "/tags/1"]
  end

  test "keywords that specs do not generate are validated too" do
    for {schema, good, bad} <- [
          {%{"allOf" => [%{"minimum" => 1}, %{"maximum" => 3}]}, 2, 4},
          {%{"oneOf" => [%{"type" => "integer"}, %{"type" => "number"}]}, 1.5, 1},
          {%{"not" => %{"type" => "string"}}, 1, "a"},
          {%{"pattern" => "^a+$"}, "aa", "ab"},
          {%{"$ref" => "#/$defs/n", "$defs" => %{"n" => %{"const" => 1}}}, 1, 2},
          {%{"anyOf" => [%{"type" => "integer"}, %{"type" => "string"}], "not" => %{"$ref" => "#/anyOf/0"}}, "a", 1},
          {%{"properties" => %{"next" => %{"$ref" => "#"}}, "type" => "object"}, %{"next" => %{}}, %{"next" => 1}},
          {%{"$ref" => "#/nowhere/0"}, :none, 1},
          {%{"enum" => [1, 2]}, 1.0, 3},
          {%{"maxLength" => 1}, "e", "e\u0301"},
          {%{"prefixItems" => [%{"type" => "string"}], "items" => %{"type" => "integer"}}, ["a", 1], ["a", "b"]},
          {%{"minItems" => 1, "maxItems" => 2}, [1], []},
          {%{"minLength" => 2, "maxLength" => 3}, "ab", "a"}
        ] do
      assert good == :none or SchemaUtils.validate(good, schema) == :ok, inspect(schema)
      assert {:error, [_ | _]} = SchemaUtils.validate(bad, schema)
    end
  end

  test "an invalid schema does not raise" do
    for keyword <- ~w(type enum required properties additionalProperties prefixItems items minItems maxItems minLength
                      maxLength minimum maximum pattern allOf anyOf oneOf not $ref),
        value <- [5, "x", %{}, [5], nil],
        data <- ["a", 1, [1], %{"a" => 1}] do
      result = SchemaUtils.validate(data, %{keyword => value})
      assert result == :ok or match?({:error, [_ | _]}, result)
    end

    assert {:error, [_]} = SchemaUtils.validate(<<255>>, %{"pattern" => "a"})
  end

  test "data is cast to the terms of the spec" do
    data = %{"name" => "Oslo", "founded" => "1048-01-01", "mood" => "good", "kind" => "village"}

    assert {:ok, %Place{name: "Oslo", founded: ~D[1048-01-01], mood: :good, kind: :village, inhabitants: 0}} =
             SchemaUtils.cast(data, Place)

    assert SchemaUtils.cast(%{"a" => [1, "x"]}, a: {:tuple, [:integer, :string]}) == {:ok, %{a: {1, "x"}}}
    assert SchemaUtils.cast("2026-01-02T03:04:05Z", :datetime) == {:ok, ~U[2026-01-02 03:04:05Z]}
    assert {:ok, nil} = SchemaUtils.cast(nil, {:nullable, Place})
    assert {:error, [_]} = SchemaUtils.cast("soon", :date)
    assert {:error, [%{pointer: ""}]} = SchemaUtils.cast(%{}, Place)
  end
end
