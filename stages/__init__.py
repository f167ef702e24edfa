"""One module for each stage of dvc.yaml: read its params, call the library, write its outputs."""
