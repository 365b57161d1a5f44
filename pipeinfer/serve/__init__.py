"""Many requests over one cluster, from any thread, and an endpoint for them: OpenAI's interface, and a page."""
