"""Human review: the queue of open questions, and telling people about them."""
