"""The scheduling of PipeInfer as pure state machines: no tensor, socket, clock, thread or randomness in here."""
