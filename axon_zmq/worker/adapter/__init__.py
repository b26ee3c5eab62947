"""Between pydantic-ai and the wire."""
