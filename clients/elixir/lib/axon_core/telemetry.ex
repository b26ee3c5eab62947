defmodule AxonCore.Telemetry do
  @moduledoc """
  Events of `:telemetry`, if this package was compiled with it.

  Whoever adds `{:telemetry, "~> 1.0"}` later runs `mix deps.compile axon_core --force`.

  | event | measurements | metadata |
  |---|---|---|
  | `[:axon_core, :run, :start]` | `system_time` | `kind`, `id` |
  | `[:axon_core, :run, :stop]` | `duration` (native units) | `kind`, `id`, `outcome`: `:complete` or the error's type |
  | `[:axon_core, :tool, :stop]` | `duration` | `name`, `id` (the run's), `outcome`: `:ok` or `:crash` |
  | `[:axon_core, :connection, :up]` | `system_time` | `identity` |
  | `[:axon_core, :connection, :down]` | `system_time` | `identity`, `reason` |

  Prompts, answers and arguments are in none of them.
  """

  @doc "Emits an event; without the package, does nothing."
  @spec execute([atom], map, map) :: :ok
  # `ensure_compiled` is `ensure_loaded?` that also waits for a module of this project, as the tests' double is one.
  if match?({:module, _telemetry}, Code.ensure_compiled(:telemetry)) do
    def execute(event, measurements, metadata), do: :telemetry.execute([:axon_core | event], measurements, metadata)
  else
    def execute(_event, _measurements, _metadata), do: :ok
  end
end
