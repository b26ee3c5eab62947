defmodule AxonCore.MixProject do
  use Mix.Project

  # The daemon has the same version, in axon_zmq/__init__.py; a test of the repository compares them. The version is
  # repeated here rather than read from that file, because the hex package does not contain it.
  @version "0.1.0"
  @source_url "https://github.com/axon-zmq/axon_zmq"

  # Unset: dependencies come from hex. A folder: compiled packages on ERL_LIBS are used instead of hex. An empty string:
  # no packages are used, and the tests that need some are excluded.
  @packages System.get_env("AXON_ELIXIR_DEPS")

  # Optional packages, each with one of its modules.
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
      name: "axon_core",
      description: "pydantic-ai agents as OTP processes, over ZeroMQ: the Elixir client of the axon_zmq daemon",
      source_url: @source_url,
      homepage_url: @source_url,
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [mod: {AxonCore.Application, []}, extra_applications: [:logger, :crypto]]
  end

  # Test doubles for missing packages. With hex, no package is missing.
  defp doubles(nil), do: []
  defp doubles(_no_hex), do: for(name <- [:msgpax, :telemetry], name not in available(), do: "test/doubles/#{name}")

  # The available packages decide which modules are compiled, so each set of packages has its own build.
  defp build_path(nil), do: "_build"

  defp build_path(_no_hex),
    do: "_build/with_" <> if(available() == [], do: "none", else: Enum.join(available(), "_"))

  # Modules of packages in a folder, which cannot be declared as dependencies. Without this the compiler would warn.
  defp undeclared(nil), do: []
  defp undeclared(_no_hex), do: [:chumak_sup | Keyword.values(@integrations)]

  defp available, do: for({name, module} <- @integrations, Code.ensure_loaded?(module), do: name)

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

  defp package do
    [
      licenses: ["MIT"],
      links: %{
        "GitHub" => @source_url,
        "Changelog" => "#{@source_url}/blob/main/clients/elixir/CHANGELOG.md",
        "Documentation of the daemon" => "#{@source_url}/tree/main/docs"
      },
      files: ~w(lib examples mix.exs README.md CHANGELOG.md LICENSE .formatter.exs)
    ]
  end

  defp docs do
    [
      main: "readme",
      extras: ["README.md", "CHANGELOG.md", "LICENSE"],
      source_ref: "v#{@version}",
      # The package is in a subdirectory of the repository.
      source_url_pattern: "#{@source_url}/blob/v#{@version}/clients/elixir/%{path}#L%{line}",
      groups_for_modules: groups_for_modules()
    ]
  end

  defp groups_for_modules do
    [
      Agents: [
        AxonCore,
        AxonCore.Agent,
        AxonCore.AgentProcess,
        AxonCore.Handle,
        AxonCore.Chunk,
        AxonCore.Result,
        AxonCore.Error
      ],
      Tools: [AxonCore.Tool, AxonCore.SchemaUtils],
      Processes: [AxonCore.Supervisor, AxonCore.Connection, AxonCore.Daemon, AxonCore.Telemetry],
      Transports: [AxonCore.Transport, AxonCore.Transport.Chumak, AxonCore.Transport.Erlzmq],
      Internals: [
        AxonCore.Calls,
        AxonCore.Codec,
        AxonCore.Credit,
        AxonCore.Message,
        AxonCore.Options,
        AxonCore.Run,
        AxonCore.SchemaUtils.Structs,
        AxonCore.SchemaUtils.Validator,
        AxonCore.Session,
        AxonCore.ToolUtils,
        AxonCore.UserCode
      ]
    ]
  end
end
