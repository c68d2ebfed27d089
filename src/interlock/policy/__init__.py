"""Controls: policy as code. Nobody decided means refused."""
