defmodule AxonCore.ToolUtils do
  @moduledoc "Conversion of tools to their form in a request, and of the values that their functions return to answers."

  alias AxonCore.{Codec, Error, Tool, UserCode}

  @type tool_function :: (map -> Tool.answer())

  @doc "Returns the tools' entries in a request, and their functions by name, which are never sent."
  @spec split([Tool.t() | keyword | map]) :: {[map], %{String.t() => tool_function}}
  def split(tools) do
    tools = tools(tools)
    names = Enum.map(tools, & &1.name)

    with [name | _] <- names -- Enum.uniq(names),
         do: raise(Error.new(:invalid_argument, "two tools have the name #{inspect(name)}; rename one of them"))

    functions = for %Tool{name: name, function: function} when function != nil <- tools, into: %{}, do: {name, function}
    {Enum.map(tools, &Tool.to_wire/1), functions}
  end

  @doc "Builds a list of tools from tools or their options; raises `AxonCore.Error` (`:invalid_argument`) otherwise."
  @spec tools([Tool.t() | keyword | map]) :: [Tool.t()]
  def tools(tools) do
    if is_list(tools) and List.improper?(tools) == false,
      do: Enum.map(tools, &as_tool/1),
      else: raise(Error.new(:invalid_argument, "invalid tools: expected a list, got: #{inspect(tools, limit: 5)}"))
  end

  defp as_tool(%Tool{} = tool), do: tool

  defp as_tool(options) do
    if is_map(options) or Keyword.keyword?(options),
      do: Tool.new(options),
      else:
        raise(
          Error.new(
            :invalid_argument,
            "invalid tool: expected an AxonCore.Tool or its options, got: #{inspect(options, limit: 5)}"
          )
        )
  end

  @doc """
  Calls a tool's function, and returns its answer as the packed body of a `tool_result`.

  An answer of more than `max_bytes` becomes a failure. Raises if the function raises or returns an invalid value.
  """
  @spec call(tool_function, map, pos_integer) :: binary
  def call(function, args, max_bytes) do
    packed = function.(args) |> packed_answer()
    size = byte_size(packed)

    if size > max_bytes,
      do: failure("result too large: #{size} bytes, more than the limit of #{max_bytes} (max_body)"),
      else: packed
  end

  @doc "Packs the value that a function returned as the body of a `tool_result`; times in the result become text."
  @spec packed_answer(Tool.answer()) :: binary
  def packed_answer(answer) do
    body = answer |> answer() |> Codec.plain()
    Codec.pack_plain(with(%{"result" => result} <- body, do: %{body | "result" => Codec.times_as_text(result)}))
  end

  @doc "Returns the body of a `tool_result` for the value that a function returned."
  @spec answer(Tool.answer()) :: map
  def answer({:ok, result}), do: %{result: result}
  def answer({:ok, result, more}), do: Map.merge(%{result: result}, Map.new(more))
  def answer({:error, message}), do: %{error: %{message: text(message), retry: false}}
  def answer({:retry, message}), do: %{error: %{message: text(message), retry: true}}

  def answer(other) do
    raise ArgumentError,
          "invalid return value of a tool: expected {:ok, result}, {:error, message} or {:retry, message}, " <>
            "got: #{inspect(other)}"
  end

  @doc "Packs the answer of a tool that failed."
  @spec failure(String.t()) :: binary
  def failure(message) do
    message =
      if String.valid?(message), do: String.slice(message, 0, 4_000), else: inspect(message, printable_limit: 4_000)

    Codec.pack(%{error: %{message: message, retry: false}})
  end

  @doc "Packs the answer of a tool whose task exited with this reason."
  @spec crashed(term) :: binary
  def crashed(reason) do
    # Formatting an exception calls its `message/1`, which is code of the application and may itself fail.
    case UserCode.call(&formatted/1, [reason]) do
      {:ok, text} -> failure(text)
      {:error, _failed} -> failure("the tool exited with #{inspect(reason, limit: 20)}")
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
