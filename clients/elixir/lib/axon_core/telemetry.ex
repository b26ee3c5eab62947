defmodule AxonCore.Telemetry do
  @moduledoc """
  Events of `:telemetry`, where that package is there.

  | event | measurements | metadata |
  |---|---|---|
  | `[:axon_core, :run, :start]` | `system_time` | `kind`, `id` |
  | `[:axon_core, :run, :stop]` | `duration` (native units) | `kind`, `id`, `outcome`: `:complete` or the error's type |
  | `[:axon_core, :tool, :stop]` | `duration` | `name`, `id` (the run's), `outcome`: `:ok` or `:crash` |
  | `[:axon_core, :connection, :up]` | `system_time` | `identity` |
  | `[:axon_core, :connection, :down]` | `system_time` | `identity`, `reason` |

  Prompts, answers and arguments are in none of them.
  """

  @doc "Looks for the package, once: looking for one that is not there takes a millisecond."
  @spec load() :: :ok
  def load do
    _ = Code.ensure_loaded(:telemetry)
    :ok
  end

  @doc "Emits an event, if anybody can hear it."
  @spec execute([atom], map, map) :: :ok
  def execute(event, measurements, metadata) do
    if function_exported?(:telemetry, :execute, 3),
      do: :telemetry.execute([:axon_core | event], measurements, metadata)

    :ok
  end
end
