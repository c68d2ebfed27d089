"""Floor 6: what owners do with runs (start, tell, pause, look, answer, clear away) and their installation. Steps are runtime's."""
