"""The harness's models, pruned: one file a model. Importing one imports the harness."""
