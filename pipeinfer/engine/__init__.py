"""What an engine has to offer, and what engines share: KV cells, sampling, model files, text from tokens."""
