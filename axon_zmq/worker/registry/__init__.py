"""Objects that the operator registered in Python: agents, models, toolsets, MCP servers."""
