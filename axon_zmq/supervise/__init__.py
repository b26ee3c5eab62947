"""The glue to supervisord."""
