"""The public classes of OpenStack services, thin, over our core: each takes its namesake's place inside the service itself."""
