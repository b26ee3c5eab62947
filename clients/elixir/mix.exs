defmodule AxonCore.MixProject do
  use Mix.Project

  @version "0.1.0"

  # A folder of compiled packages, in place of hex; "" where there is none, and what needs them is not tested.
  @packages System.get_env("AXON_ELIXIR_DEPS")

  def project do
    [
      app: :axon_core,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: ["lib" | if(Mix.env() == :test, do: test_paths(@packages), else: [])],
      build_path: if(@packages == "", do: "_build/without_packages", else: "_build"),
      deps: deps(@packages),
      start_permanent: Mix.env() == :prod,
      prune_code_paths: false,
      xref: [exclude: [:chumak, :chumak_sup, :erlzmq, :telemetry, Msgpax]],
      dialyzer: [plt_add_apps: [:mix, :ex_unit]],
      description: "pydantic-ai agents for OTP, over ZeroMQ: the Elixir client of axon_zmq",
      package: [licenses: ["MIT"], files: ~w(lib examples mix.exs README.md .formatter.exs)],
      docs: [main: "readme", extras: ["README.md"], groups_for_modules: groups()]
    ]
  end

  def application do
    [extra_applications: [:logger, :crypto]]
  end

  defp test_paths(""), do: ["test/support", "test/without_packages"]
  defp test_paths(_packages), do: ["test/support"]

  defp deps(nil) do
    [
      {:chumak, "~> 1.5"},
      {:msgpax, "~> 2.4"},
      {:erlzmq, "~> 4.2", hex: :erlzmq_dnif, optional: true},
      {:telemetry, "~> 1.0", optional: true},
      {:dialyxir, "~> 1.4", only: :dev, runtime: false},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  defp deps(_folder), do: []

  defp groups do
    [
      Agents: [AxonCore.Agent, AxonCore.AgentProcess, AxonCore.Handle, AxonCore.Chunk, AxonCore.Result, AxonCore.Error],
      Tools: [AxonCore.Tool, AxonCore.ToolUtils, AxonCore.SchemaUtils],
      Processes: [AxonCore.Supervisor, AxonCore.Connection, AxonCore.Daemon, AxonCore.Telemetry],
      "Wire and transports": [
        AxonCore.Codec,
        AxonCore.Session,
        AxonCore.Run,
        AxonCore.Calls,
        AxonCore.Transport,
        AxonCore.Transport.Chumak,
        AxonCore.Transport.Erlzmq
      ]
    ]
  end
end
