"""The stand-in for the aws provider, one file for each service."""
