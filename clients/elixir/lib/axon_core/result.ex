defmodule AxonCore.Result do
  @moduledoc """
  How a run ended well: the body of `complete`.

  `result` is the answer: text, or data that fits the output schema; the struct where the agent's `output` names one.
  `messages` are the run's new messages, to be sent back unchanged. `deferred` is set instead of `result` where calls wait
  for an answer or an approval: `%{"calls" => [...], "approvals" => [...]}`, each with `"call_id"`, `"name"` and `"args"`.
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

  @doc "The body of a `complete`."
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
