"""Floor 5: the choke point and what stands around it: effects, versions, projects, the port of the engines."""
