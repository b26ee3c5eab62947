defmodule MyAppWeb.ChatLive do
  @moduledoc "A LiveView's handlers: the messages of a run are what `handle_info` is made for."
  use MyAppWeb, :live_view

  def mount(_params, _session, socket) do
    {:ok, assign(socket, answer: "", run: nil, fault: nil)}
  end

  def handle_event("ask", %{"question" => question}, socket) do
    # The run ends with this page: its process asked.
    case AxonCore.AgentProcess.run_stream(MyApp.Support, question) do
      {:ok, run} -> {:noreply, assign(socket, answer: "", run: run, fault: nil)}
      {:error, error} -> {:noreply, assign(socket, fault: Exception.message(error))}
    end
  end

  def handle_event("stop", _params, %{assigns: %{run: run}} = socket) when run != nil do
    AxonCore.cancel(run)
    {:noreply, socket}
  end

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
