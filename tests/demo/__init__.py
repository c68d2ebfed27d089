"""`interlock demo` as its users run it: a command in a process group of its own."""
