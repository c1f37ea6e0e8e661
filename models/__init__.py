"""The bundled default model and the tools that make model bundles."""
