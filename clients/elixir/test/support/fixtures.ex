defmodule AxonCore.Fixtures do
  @moduledoc "Structs for the tests of `AxonCore.SchemaUtils`."

  defmodule Place do
    @enforce_keys [:name]
    defstruct [:name, :founded, :mood, inhabitants: 0, kind: :town, tags: [], near: []]

    @type kind :: :town | :village
    @type t :: %__MODULE__{
            name: String.t(),
            founded: Date.t() | nil,
            mood: nil | :good | :bad,
            inhabitants: non_neg_integer,
            kind: kind,
            tags: [String.t()],
            near: [t]
          }
  end

  defmodule Trip do
    @enforce_keys [:from, :to]
    defstruct [:from, :to, days: 1]
    @type t :: %__MODULE__{from: Place.t(), to: Place.t(), days: 1..30}
  end

  defmodule Parent do
    defstruct [:name, children: []]
    @type t :: %__MODULE__{name: String.t(), children: [AxonCore.Fixtures.Child.t()]}
  end

  defmodule Child do
    defstruct [:name, :of]
    @type t :: %__MODULE__{name: String.t(), of: AxonCore.Fixtures.Parent.t() | nil}
  end

  defmodule Plain do
    defstruct [:anything, size: 3]
  end

  defmodule Color do
    @type t :: :red | :green
  end

  defmodule Odd do
    defstruct [:more, :color, meta: %{}, size: {1, 2}, run: &String.upcase/1]

    @type t :: %__MODULE__{
            more: map,
            color: AxonCore.Fixtures.Color.t(),
            meta: map,
            size: {integer, integer},
            run: (String.t() -> String.t())
          }
  end

  defmodule LikeEcto do
    defstruct [:id, :title, :mood, :tags, :at, :meta]

    def __schema__(:fields), do: [:id, :title, :mood, :tags, :at, :meta]
    def __schema__(:type, :meta), do: :map
    def __schema__(:type, :id), do: :id
    def __schema__(:type, :title), do: :string
    def __schema__(:type, :mood), do: {:parameterized, Ecto.Enum, %{mappings: [good: "good", bad: "bad"]}}
    def __schema__(:type, :tags), do: {:array, :string}
    def __schema__(:type, :at), do: :utc_datetime
    def __schema__(:type, _field), do: nil
  end
end
