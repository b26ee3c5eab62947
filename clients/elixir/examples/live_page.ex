defmodule MyAppWeb.ChatLive do
  @moduledoc """
  LiveView that shows a streamed answer: `handle_info/2` receives the messages of the run.

  Each page has its own conversation, which ends when the page is closed.
  """
  use MyAppWeb, :live_view

  def mount(_params, _session, socket) do
    {:ok, agent} = AxonCore.AgentProcess.start_link(connection: MyApp.Axon, agent: "support")
    {:ok, assign(socket, agent: agent, answer: "", run: nil, fault: nil)}
  end

  def handle_event("ask", %{"question" => question}, %{assigns: %{run: nil}} = socket) do
    # If the page is closed, its process exits and the run is cancelled.
    case AxonCore.AgentProcess.run_stream(socket.assigns.agent, question) do
      {:ok, run} -> {:noreply, assign(socket, answer: "", run: run, fault: nil)}
      {:error, error} -> {:noreply, assign(socket, fault: Exception.message(error))}
    end
  end

  def handle_event("stop", _params, %{assigns: %{run: run}} = socket) when run != nil do
    AxonCore.cancel(run)
    {:noreply, socket}
  end

  # Ignores a question while another one is being answered, and "stop" after the run has ended.
  def handle_event(_event, _params, socket), do: {:noreply, socket}

  def handle_info({:axon, ref, event}, %{assigns: %{run: %{ref: ref}}} = socket) do
    case event do
      {:chunk, %AxonCore.Chunk{type: :text, data: text}} -> {:noreply, update(socket, :answer, &(&1 <> text))}
      {:complete, result} -> {:noreply, assign(socket, answer: result.result, run: nil)}
      {:error, error} -> {:noreply, assign(socket, fault: Exception.message(error), run: nil)}
      _other -> {:noreply, socket}
    end
  end

  # Ignores messages of an earlier run.
  def handle_info({:axon, _ref, _event}, socket), do: {:noreply, socket}
end
