"""The ops' benchmarks on a GPU: `python3 benchmarks/gpu --results FOLDER`.

Cases and what they are compared with are in :mod:`ops`, how a call is timed in :mod:`gpu.clock`,
what the device can do at best in :mod:`gpu.device`.
"""
