defmodule AxonCore.Chunk do
  @moduledoc """
  One chunk of a streamed run: a part of the answer, or an event of a tool.

  | `type` | `data` |
  |---|---|
  | `:text` | the new characters |
  | `:thinking` | the new characters of the model's thinking |
  | `:output` | the complete structured output received so far |
  | `:tool_started` | `%{"call_id", "name", "args"}` |
  | `:tool_finished` | `%{"call_id", "outcome", "result"}` |
  | `:event` | an event of pydantic-ai, with the option `events: :all` |

  `step` is the number of the model's response, from 1. The text of the last step is the answer. `part` is the index of
  the part within the response. `seq` is the number of the message within the run; pass it to `AxonCore.took/2` if the
  run has credit. A type that this version does not know is a string.
  """

  @enforce_keys [:type, :data, :seq]
  defstruct [:type, :data, :seq, :step, :part]

  @type t :: %__MODULE__{
          type: :text | :thinking | :output | :tool_started | :tool_finished | :event | String.t(),
          data: term,
          seq: pos_integer,
          step: pos_integer | nil,
          part: non_neg_integer | nil
        }

  @types Map.new(~w(text thinking output tool_started tool_finished event)a, &{Atom.to_string(&1), &1})

  @doc "Builds a chunk from the body of a `chunk` message."
  @spec from_wire(map) :: t
  def from_wire(%{"type" => type, "seq" => seq} = body) do
    type = Map.get(@types, type, type)
    %__MODULE__{type: type, data: body["data"], seq: seq, step: body["step"], part: body["part"]}
  end
end
