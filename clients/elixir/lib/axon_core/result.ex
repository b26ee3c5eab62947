defmodule AxonCore.Result do
  @moduledoc """
  Result of a run: the body of its `complete` message.

  - `result` is the answer: text, or data that fits the output schema, cast to the agent's `output` if that is set.
  - `messages` are the new messages of the run. Send them back unchanged to continue the conversation.
  - `deferred` is set instead of `result` if tool calls wait for an answer or an approval:
    `%{"calls" => [...], "approvals" => [...]}`. Each call has `"call_id"`, `"name"` and `"args"`.
  - `usage` counts `"requests"`, `"tool_calls"`, `"input_tokens"` and `"output_tokens"`, among others.
  - `finish_reason` is the reason of the last model response, such as `"stop"`; `model` is the name of the model, and
    `run_id` is pydantic-ai's id of the run.
  - `content` and `metadata` are set only by `AxonCore.call_tool/4`, if the tool returns them beside its result.
  """

  defstruct [:result, :finish_reason, :model, :run_id, :deferred, :content, :metadata, usage: %{}, messages: []]

  @type t :: %__MODULE__{
          result: term,
          finish_reason: String.t() | nil,
          model: String.t() | nil,
          run_id: String.t() | nil,
          deferred: map | nil,
          content: term,
          metadata: term,
          usage: map,
          messages: [map]
        }

  @doc "Builds a result from the body of a `complete` message."
  @spec from_wire(map) :: t
  def from_wire(body) do
    %__MODULE__{
      result: body["result"],
      finish_reason: body["finish_reason"],
      model: body["model"],
      run_id: body["run_id"],
      deferred: body["deferred"],
      content: body["content"],
      metadata: body["metadata"],
      usage: body["usage"] || %{},
      messages: body["messages"] || []
    }
  end
end
