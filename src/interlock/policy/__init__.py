"""Controls: policy as code. An undecided request is refused."""
