"""What is counted, in every process of the server."""
