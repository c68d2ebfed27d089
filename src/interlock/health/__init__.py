"""Whether tools and providers can be called: breakers and health checks. It decides; the kernel enforces."""
