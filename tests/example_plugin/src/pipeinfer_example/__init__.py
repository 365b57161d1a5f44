"""An example of a third-party plug-in for PipeInfer."""
