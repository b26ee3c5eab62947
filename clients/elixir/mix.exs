defmodule AxonCore.MixProject do
  use Mix.Project

  @version "0.1.0"

  # "folder": compiled packages on ERL_LIBS instead of hex; "": no packages, and what needs them is not tested.
  @packages System.get_env("AXON_ELIXIR_DEPS")

  # Modules of the packages that this one uses if they are there.
  @integrations [chumak: :chumak, erlzmq: :erlzmq, msgpax: Msgpax, telemetry: :telemetry]

  def project do
    [
      app: :axon_core,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: ["lib" | if(Mix.env() == :test, do: ["test/support" | doubles(@packages)], else: [])],
      build_path: build_path(@packages),
      deps: deps(@packages),
      start_permanent: Mix.env() == :prod,
      prune_code_paths: false,
      xref: [exclude: undeclared(@packages)],
      dialyzer: [plt_add_apps: [:mix, :ex_unit]],
      description: "pydantic-ai agents for OTP, over ZeroMQ: the Elixir client of axon_zmq",
      package: [licenses: ["MIT"], files: ~w(lib examples mix.exs README.md .formatter.exs)],
      docs: [main: "readme", extras: ["README.md"], groups_for_modules: groups()]
    ]
  end

  def application do
    [mod: {AxonCore.Application, []}, extra_applications: [:logger, :crypto]]
  end

  # Stand-ins of the tests for packages that are missing. With hex, none is.
  defp doubles(nil), do: []
  defp doubles(_no_hex), do: for(name <- [:msgpax, :telemetry], name not in there(), do: "test/doubles/#{name}")

  # What is compiled depends on which packages are there, so each such set has a build of its own.
  defp build_path(nil), do: "_build"
  defp build_path(_no_hex), do: "_build/with_" <> if(there() == [], do: "none", else: Enum.join(there(), "_"))

  # What is used of a folder's packages, which cannot be declared as dependencies.
  defp undeclared(nil), do: []
  defp undeclared(_no_hex), do: [:chumak_sup | Keyword.values(@integrations)]

  defp there, do: for({name, module} <- @integrations, Code.ensure_loaded?(module), do: name)

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
      Processes: [AxonCore.Supervisor, AxonCore.Connection, AxonCore.Daemon, AxonCore.Options, AxonCore.Telemetry],
      "Wire and transports": [
        AxonCore.Codec,
        AxonCore.Message,
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
