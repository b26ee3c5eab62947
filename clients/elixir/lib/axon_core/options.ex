defmodule AxonCore.Options do
  @moduledoc "Options are checked: a misspelled one would be passed over in silence."

  alias AxonCore.Error

  @doc "Raises `AxonCore.Error` (`:invalid_argument`) where `what` is given an option that it has not."
  @spec check(keyword, [atom], String.t()) :: :ok
  def check(options, known, what) do
    if not Keyword.keyword?(options), do: raise(no_options(options))

    case Enum.find(Keyword.keys(options), &(&1 not in known)) do
      nil -> :ok
      unknown -> raise Error.new(:invalid_argument, "#{what} has no option #{inspect(unknown)}#{hint(unknown, known)}")
    end
  end

  @doc "What is said of options that are none."
  @spec no_options(term) :: Error.t()
  def no_options(given),
    do: Error.new(:invalid_argument, "options are a keyword list, not #{inspect(given, limit: 5)}")

  defp hint(unknown, known) do
    near = Enum.max_by(known, &String.jaro_distance(to_string(unknown), to_string(&1)))
    if String.jaro_distance(to_string(unknown), to_string(near)) > 0.8, do: "; did you mean #{inspect(near)}?", else: ""
  end
end
