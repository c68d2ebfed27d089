"""Floor 6: what owners do with runs (start, tell, pause, look, answer, clear away) and with their installation. What a step does is runtime's."""
