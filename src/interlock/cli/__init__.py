"""Entry point: the command line. Commands call the HTTP API, over the network or in this process."""
