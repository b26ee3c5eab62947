"""What the operator registered in Python."""
