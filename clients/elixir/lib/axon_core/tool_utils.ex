defmodule AxonCore.ToolUtils do
  @moduledoc "From tools to what goes over the wire, and from what their functions return to answers."

  alias AxonCore.{Codec, Error, Tool, UserCode}

  @type tool_function :: (map -> Tool.answer())

  @doc "Tools as the daemon is told of them, and their functions by name, which stay here."
  @spec split([Tool.t() | keyword | map]) :: {[map], %{String.t() => tool_function}}
  def split(tools) do
    tools = tools(tools)
    twice = Enum.map(tools, & &1.name) -- Enum.uniq(Enum.map(tools, & &1.name))
    if twice != [], do: raise(Error.new(:invalid_argument, "two tools are called #{inspect(hd(twice))}"))
    functions = for %Tool{name: name, function: function} when function != nil <- tools, into: %{}, do: {name, function}
    {Enum.map(tools, &Tool.to_wire/1), functions}
  end

  @doc "A list of tools, or of the options of some; raises `AxonCore.Error` (`:invalid_argument`) for what is none."
  @spec tools([Tool.t() | keyword | map]) :: [Tool.t()]
  def tools(tools) do
    if is_list(tools) and List.improper?(tools) == false,
      do: Enum.map(tools, &as_tool/1),
      else: raise(Error.new(:invalid_argument, "expected a list of tools, got: #{inspect(tools, limit: 5)}"))
  end

  defp as_tool(%Tool{} = tool), do: tool

  defp as_tool(options) do
    if is_map(options) or Keyword.keyword?(options),
      do: Tool.new(options),
      else:
        raise(
          Error.new(:invalid_argument, "expected a tool, as AxonCore.Tool.new(…), got: #{inspect(options, limit: 5)}")
        )
  end

  @doc """
  Calls a tool's function; its answer as the packed body of a `tool_result`.

  Raises where the function raises, and where it returns what no tool does; an answer over `most` bytes is a failure.
  """
  @spec call(tool_function, map, pos_integer) :: binary
  def call(function, args, most) do
    packed = function.(args) |> packed_answer()
    size = byte_size(packed)
    if size > most, do: failure("the result has #{size} bytes, more than #{most}"), else: packed
  end

  @doc "What a function returned as the packed body of a `tool_result`; times are text in its result, as in JSON."
  @spec packed_answer(Tool.answer()) :: binary
  def packed_answer(answer) do
    body = answer |> answer() |> Codec.plain()
    Codec.pack_plain(with(%{"result" => result} <- body, do: %{body | "result" => Codec.times_as_text(result)}))
  end

  @doc "The same, as it is."
  @spec answer(Tool.answer()) :: map
  def answer({:ok, result}), do: %{result: result}
  def answer({:ok, result, more}), do: Map.merge(%{result: result}, Map.new(more))
  def answer({:error, message}), do: %{error: %{message: text(message), retry: false}}
  def answer({:retry, message}), do: %{error: %{message: text(message), retry: true}}

  def answer(other) do
    raise ArgumentError, "a tool returns {:ok, result}, {:error, message} or {:retry, message}, not #{inspect(other)}"
  end

  @doc "The answer of a tool that failed, packed."
  @spec failure(String.t()) :: binary
  def failure(message) do
    message =
      if String.valid?(message), do: String.slice(message, 0, 4_000), else: inspect(message, printable_limit: 4_000)

    Codec.pack(%{error: %{message: message, retry: false}})
  end

  @doc "The same for a task that ended with a reason, whatever that is."
  @spec crashed(term) :: binary
  def crashed(reason) do
    # An exception is formatted by its own `message/1`, which is the application's code and may fail.
    case UserCode.call(&formatted/1, [reason]) do
      {:ok, text} -> failure(text)
      {:error, _failed} -> failure("the tool ended with #{inspect(reason, limit: 20)}")
    end
  end

  defp formatted({%Error{} = error, stack}) when is_list(stack), do: Exception.message(error)
  defp formatted({reason, stack}) when is_list(stack), do: Exception.format_banner(:error, reason, stack)
  defp formatted(reason), do: Exception.format_exit(reason)

  defp text(message) when is_binary(message), do: message
  defp text(message) when is_exception(message), do: Exception.message(message)
  defp text(message) when is_atom(message) and message != nil, do: Atom.to_string(message)
  defp text(message), do: inspect(message)
end
