"""Other people's engines with pruned models: one folder an engine.

Nothing in the package imports these modules, and each needs its engine installed.
"""
