"""One module for each way in which a worker executes a request."""
