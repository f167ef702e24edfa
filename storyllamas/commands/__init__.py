"""The commands of `storyllamas`, a module each.

default_model.py, engine_options.py and sampler_options.py serve several commands.
"""
