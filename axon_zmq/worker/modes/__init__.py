"""Executors of the modes: the only modules that call an agent or a tool."""
