defmodule AxonCore.Telemetry do
  @moduledoc """
  Events for the package `:telemetry`, emitted if axon_core was compiled with it.

  If you add `{:telemetry, "~> 1.0"}` to a project later, run `mix deps.compile axon_core --force`.

  | event | measurements | metadata |
  |---|---|---|
  | `[:axon_core, :run, :start]` | `system_time` | `kind`, `id` |
  | `[:axon_core, :run, :stop]` | `duration` (native units) | `kind`, `id`, `outcome`: `:complete` or the error's type |
  | `[:axon_core, :tool, :stop]` | `duration` (native units) | `name`, `id` of the run, `outcome`: `:ok` or `:crash` |
  | `[:axon_core, :connection, :up]` | `system_time` | `identity` |
  | `[:axon_core, :connection, :down]` | `system_time` | `identity`, `reason` |

  No event contains prompts, answers or arguments.
  """

  @doc "Emits an event, or does nothing if the package is missing."
  @spec execute([atom], map, map) :: :ok
  # `ensure_compiled` rather than `ensure_loaded?`: it waits for modules of this project, such as the test double.
  if match?({:module, _telemetry}, Code.ensure_compiled(:telemetry)) do
    def execute(event, measurements, metadata), do: :telemetry.execute([:axon_core | event], measurements, metadata)
  else
    def execute(_event, _measurements, _metadata), do: :ok
  end
end
