"""Floor 6: what owners do with runs: start, tell, pause, look, answer, clear away. What a step does is runtime's."""
