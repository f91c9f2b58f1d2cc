"""The command ``amdim-fast``: a module a command."""
