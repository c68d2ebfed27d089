"""Inputs of a call: bound values, tool arguments, an agent's conversation."""
