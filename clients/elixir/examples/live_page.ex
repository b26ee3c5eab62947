defmodule MyAppWeb.ChatLive do
  @moduledoc """
  A LiveView's handlers: the messages of a run are what `handle_info` is made for.

  Each page has a conversation of its own, which ends with it.
  """
  use MyAppWeb, :live_view

  def mount(_params, _session, socket) do
    {:ok, agent} = AxonCore.AgentProcess.start_link(connection: MyApp.Axon, agent: "support")
    {:ok, assign(socket, agent: agent, answer: "", run: nil, fault: nil)}
  end

  def handle_event("ask", %{"question" => question}, %{assigns: %{run: nil}} = socket) do
    # The run ends with this page: its process asked.
    case AxonCore.AgentProcess.run_stream(socket.assigns.agent, question) do
      {:ok, run} -> {:noreply, assign(socket, answer: "", run: run, fault: nil)}
      {:error, error} -> {:noreply, assign(socket, fault: Exception.message(error))}
    end
  end

  def handle_event("stop", _params, %{assigns: %{run: run}} = socket) when run != nil do
    AxonCore.cancel(run)
    {:noreply, socket}
  end

  # A question while another is being answered, and "stop" when that has just ended.
  def handle_event(_too_early_or_late, _params, socket), do: {:noreply, socket}

  def handle_info({:axon, ref, event}, %{assigns: %{run: %{ref: ref}}} = socket) do
    case event do
      {:chunk, %AxonCore.Chunk{type: :text, data: text}} -> {:noreply, update(socket, :answer, &(&1 <> text))}
      {:complete, result} -> {:noreply, assign(socket, answer: result.result, run: nil)}
      {:error, error} -> {:noreply, assign(socket, fault: Exception.message(error), run: nil)}
      _other -> {:noreply, socket}
    end
  end

  # Of an earlier question.
  def handle_info({:axon, _ref, _event}, socket), do: {:noreply, socket}
end
