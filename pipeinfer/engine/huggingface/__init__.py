"""Models in the format of Hugging Face: a folder with config.json, tokenizer.json and safetensors. For any backend."""
