"""A door: the command line. Commands speak to the HTTP API, over the network or inside this process."""
