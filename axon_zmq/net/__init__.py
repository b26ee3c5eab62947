"""Sockets and endpoints."""
