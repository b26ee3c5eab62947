defmodule AxonCore.Chunk do
  @moduledoc """
  A piece of a run's answer, or news of its tools.

  | `type` | `data` |
  |---|---|
  | `:text` | the new characters |
  | `:thinking` | the new characters of the model's thinking |
  | `:output` | the structured output so far, whole each time |
  | `:tool_started` | `%{"call_id", "name", "args"}` |
  | `:tool_finished` | `%{"call_id", "outcome", "result"}` |
  | `:event` | pydantic-ai's own event, with `events: "all"` |

  `step` is the number of the model's response, from 1: the text of the last step is the answer. `part` is the index of
  the part in it. A type that this version does not know stays the daemon's text.
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

  @doc "The body of a `chunk`."
  @spec from_wire(map) :: t
  def from_wire(%{"type" => type, "seq" => seq} = body) do
    type = Map.get(@types, type, type)
    %__MODULE__{type: type, data: body["data"], seq: seq, step: body["step"], part: body["part"]}
  end
end
