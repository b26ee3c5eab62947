"""Translation between pydantic-ai and the wire protocol."""
