defmodule :telemetry do
  @moduledoc "Test double for telemetry, used if that package is missing: it supports one handler."

  def attach_many(_id, events, function, config), do: :persistent_term.put(__MODULE__, {events, function, config})

  def detach(_id), do: :persistent_term.erase(__MODULE__)

  def execute(event, measurements, metadata) do
    {events, function, config} = :persistent_term.get(__MODULE__, {[], nil, nil})
    if event in events, do: function.(event, measurements, metadata, config)
    :ok
  end
end
