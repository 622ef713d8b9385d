"""Language models as folders of safetensors: read, run and written block by block, never whole."""
