defmodule AxonCore.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :axon_core,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: if(Mix.env() == :test, do: ["lib", "test/support"], else: ["lib"]),
      deps: deps(System.get_env("AXON_ELIXIR_DEPS")),
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

  # The project's own tests cannot reach hex: they name a folder of compiled packages instead, which ERL_LIBS has too.
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
