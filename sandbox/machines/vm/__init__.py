"""The declared machine, booted: Debian 13 in namespaces, in a network like AWS' own."""
