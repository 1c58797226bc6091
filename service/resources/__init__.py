"""The operations: every module `*_api.py` here is found at the start and held against openapi.yaml.

A module exports `routes(context)`, a list of (URI template, resource).
"""
